package controlplane

import (
	"net/netip"
	"path"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// WaypointRefused is what is said of every waypoint.
const WaypointRefused = "a waypoint needs a PROXY protocol header before the first byte, which cannot be put there at connect time without sockmap; " +
	"remove waypoint"

func (v value) waypoint() {
	if v.given() {
		v.fault("%s", WaypointRefused)
	}
}

type address struct {
	value
	addr netip.Addr
}

// addresses are those of a list that a connection can go to, IPv4 as such.
func (v value) addresses() []address {
	var list []address
	for _, item := range v.texts() {
		text := item.node.Value
		addr, err := netip.ParseAddr(text)
		zone := addr.Zone()
		switch addr = addr.Unmap(); {
		case err != nil:
			item.fault("%q is no address; write one such as 10.0.0.1 or fd00::1", text)
		case zone != "":
			item.fault("%q has a zone, which means nothing on another node; use an address without %%%s", text, zone)
		case addr.IsUnspecified():
			item.fault("%q is no address that can be dialled; write one of a host", text)
		case addr.IsMulticast():
			item.fault("%q is a multicast address, and TCP has none; write one of a host", text)
		default:
			list = append(list, address{item, addr})
		}
	}
	return list
}

func addrsOf(list []address) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range list {
		addrs = append(addrs, a.addr)
	}
	return addrs
}

func (v value) locality() model.Locality {
	o, _ := v.object("region", "zone", "subzone", "node")
	return model.Locality{
		Region: o.at("region").text(), Zone: o.at("zone").text(), Subzone: o.at("subzone").text(), Node: o.at("node").text(),
	}
}

func (v value) limits() model.Limits {
	const any32 = 1<<32 - 1
	o, _ := v.object("maxConnections", "maxConnecting", "connectionsPerSecond", "burst")
	limit := func(key string, most uint32) uint32 {
		v := o.at(key)
		if v.given() && v.node.Value == "0" && v.node.ShortTag() == wholeTag { // could be meant as none at all
			v.fault("0; use at least 1, or remove it for no limit")
			return 0
		}
		return v.number(0, 1, most)
	}
	limits := model.Limits{
		MaxConnections: limit("maxConnections", any32),
		MaxConnecting:  limit("maxConnecting", any32),
		// The kernel holds tokens as nanoseconds: one is not to be less than that.
		ConnectionsPerSecond: limit("connectionsPerSecond", 1_000_000_000),
		Burst:                limit("burst", any32),
	}
	if burst := o.at("burst"); burst.given() && !o.at("connectionsPerSecond").given() {
		burst.fault("is the size of a bucket that nothing fills; add connectionsPerSecond, or remove it")
	}
	return limits
}

// cgroup is empty if it was not given.
func (v value) cgroup() string {
	text := v.text()
	switch {
	case !v.isText():
		return ""
	case text == "" || text[0] != '/':
		v.fault("%q is no path below the root of cgroup v2; begin it with /", text)
		return ""
	case path.Clean(text) == "/":
		v.fault("%q is every process of the node; name a cgroup below it", text)
		return ""
	case path.Clean(text) != text:
		v.fault("%q is not how the kernel writes a path; write %s", text, path.Clean(text))
		return ""
	}
	return text
}

func (v value) matchLabels() map[string]string {
	o, _ := v.object("matchLabels")
	return o.at("matchLabels").labels()
}
