package metadata

import "testing"

// D2: a connection is bound to a link, not to its name: one that was attached again
// under the same name gets connections of its own.
func TestConnectionsByLink(t *testing.T) {
	transport := NewClient(Options{}).transport
	first := transport.over(Path{Device: "ens6", Index: 3})
	if transport.over(Path{Device: "ens6", Index: 3, Endpoint: EndpointIPv6}) != first {
		t.Error("one link has two pools of connections")
	}
	if transport.over(Path{Device: "ens6", Index: 4}) == first {
		t.Error("another link of the same name has the connections of the first")
	}
}
