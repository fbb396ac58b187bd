package maps

import "github.com/sidelight-mesh/sidelight/agent/model"

func parts(l model.Locality) [4]string { return [4]string{l.Region, l.Zone, l.Subzone, l.Node} }

// nearness counts the leading parts of a place that are as the node's. What the node does not say of itself tells nothing and is passed over.
func nearness(node, place model.Locality) int {
	n, p := parts(node), parts(place)
	rank := 0
	for i := range n {
		if n[i] == "" {
			continue
		}
		if n[i] != p[i] {
			break
		}
		rank++
	}
	return rank
}

// within tells whether a place is in the node's region, zone, subzone or node. Of what is wider only that counts which the node says of itself; a
// node that does not know the part that the scope is about has nothing near: strict means strict.
func within(node, place model.Locality, scope model.Scope) bool {
	n, p := parts(node), parts(place)
	last := int(scope) - 1
	if last < 0 || last >= len(n) || n[last] == "" {
		return false
	}
	for i := range last + 1 {
		if n[i] != "" && n[i] != p[i] {
			return false
		}
	}
	return true
}
