package controlplane

import (
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

func (r *reader) policy(name model.Name, spec value) {
	o, ok := spec.object("scope", "selector", "action", "dryRun", "rules")
	if !ok {
		return
	}
	p := model.AuthorizationPolicy{
		Name:     name,
		Mesh:     o.at("scope").choice("namespace", "mesh") == 1,
		Selector: o.at("selector").matchLabels(),
		Action:   []model.Action{model.Allow, model.Deny}[o.at("action").choice("ALLOW", "DENY")],
		DryRun:   o.at("dryRun").truth(),
	}
	rules, _ := o.at("rules").list()
	for _, rule := range rules {
		p.Rules = append(p.Rules, rule.rule())
	}
	r.mesh.Policies = append(r.mesh.Policies, p)
}

func (v value) rule() model.Rule {
	o, _ := v.object("from", "to")
	var rule model.Rule
	for _, item := range o.at("from").alternatives() {
		if from, ok := item.object("source"); ok {
			rule.From = append(rule.From, from.at("source").source())
		}
	}
	for _, item := range o.at("to").alternatives() {
		if to, ok := item.object("operation"); ok {
			rule.To = append(rule.To, to.at("operation").operation())
		}
	}
	return rule
}

// alternatives are a list of which one must match. One that is there and empty reads as if nothing did, and means the opposite.
func (v value) alternatives() []value {
	items, ok := v.list()
	if ok && v.given() && len(items) == 0 {
		v.fault("is an empty list; add something, or remove it to match any")
	}
	return items
}

func (v value) source() model.Source {
	if !v.given() {
		v.fault("missing; add it, with what is to match")
		return model.Source{}
	}
	o, ok := v.object("identities", "notIdentities", "principals", "notPrincipals", "namespaces", "notNamespaces", "ipBlocks", "notIpBlocks")
	if !ok {
		return model.Source{}
	}
	s := model.Source{
		Identities:    o.identities("identities", "principals"),
		NotIdentities: o.identities("notIdentities", "notPrincipals"),
		Namespaces:    o.at("namespaces").patterns(),
		NotNamespaces: o.at("notNamespaces").patterns(),
		IPBlocks:      o.at("ipBlocks").prefixes(),
		NotIPBlocks:   o.at("notIpBlocks").prefixes(),
	}
	o.refuseEmpty()
	return s
}

func (v value) operation() model.Operation {
	if !v.given() {
		v.fault("missing; add it, with what is to match")
		return model.Operation{}
	}
	o, ok := v.object("ports", "notPorts")
	if !ok {
		return model.Operation{}
	}
	operation := model.Operation{Ports: o.at("ports").policyPorts(), NotPorts: o.at("notPorts").policyPorts()}
	o.refuseEmpty()
	return operation
}

// refuseEmpty reports a mapping in which no list has anything, as Istio does.
func (o object) refuseEmpty() {
	for i := 1; i < len(o.node.Content); i += 2 {
		if n := o.node.Content[i]; n.Kind != yaml.SequenceNode || len(n.Content) > 0 {
			return
		}
	}
	o.fault("names nothing; add what is to match, or use {} as the whole rule to match any")
}

// identities are of the key or of Istio's name for it. Istio writes SPIFFE identities without the scheme, and so they get it.
func (o object) identities(key, istio string) []string {
	if o.at(key).given() && o.at(istio).given() {
		o.at(istio).fault("is another name of %s; use one of them", key)
	}
	list := o.at(key).patterns()
	for _, principal := range o.at(istio).patterns() {
		if !strings.HasPrefix(principal, "*") && !strings.HasPrefix(principal, "spiffe://") {
			principal = "spiffe://" + principal
		}
		list = append(list, principal)
	}
	return list
}

// patterns are texts that may begin or end with *.
func (v value) patterns() []string {
	texts := v.texts()
	for _, item := range texts {
		text := item.node.Value
		inside := strings.Contains(text, "*") && !strings.HasPrefix(text, "*") && !strings.HasSuffix(text, "*")
		if inside || strings.Count(text, "*") > 1 {
			item.fault("%q has a * inside, or more than one; use TEXT, TEXT*, *TEXT or *", text)
		}
	}
	return valuesOf(texts)
}

// prefixes are blocks of addresses, or single addresses, IPv4 as such.
func (v value) prefixes() []netip.Prefix {
	items, _ := v.list()
	var list []netip.Prefix
	for _, item := range items {
		if !item.is(textTag, "a block such as 10.0.0.0/8") {
			continue
		}
		text := item.node.Value
		prefix, err := netip.ParsePrefix(text)
		if addr, single := netip.ParseAddr(text); single == nil && addr.Zone() == "" {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			item.fault("%q is no block of addresses; write one such as 10.0.0.0/8 or fd00::/8", text)
			continue
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		if prefix != prefix.Masked() {
			item.fault("%q has bits of hosts set; write %v", text, prefix.Masked())
			continue
		}
		list = append(list, prefix)
	}
	return list
}

// policyPorts are numbers, or as in Istio numbers in quotes.
func (v value) policyPorts() []uint16 {
	items, _ := v.list()
	var list []uint16
	for _, item := range items {
		if !item.isText() {
			if n := item.port(); n != 0 {
				list = append(list, n)
			}
			continue
		}
		n, ok := decimal(item.node.Value)
		if !ok || n < 1 || n > 65535 {
			item.fault("%q; use a whole number from 1 to 65535", item.node.Value)
			continue
		}
		list = append(list, uint16(n))
	}
	return list
}
