package dbusserver

import (
	_ "embed"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	"ec2netd/api"
)

// The interfaces of the D-Bus specification that the objects here have. Peer is
// implemented by godbus, on every path.
const (
	peerInterface          = "org.freedesktop.DBus.Peer"
	introspectInterface    = "org.freedesktop.DBus.Introspectable"
	propertiesInterface    = "org.freedesktop.DBus.Properties"
	objectManagerInterface = "org.freedesktop.DBus.ObjectManager"
	logControlInterface    = "org.freedesktop.LogControl1"
)

//go:embed standard.xml
var standardXML string

// contract is the content of the XML, in the forms that the server needs.
type contract struct {
	// interfaces by name.
	interfaces map[string]introspect.Interface
	// text is the XML of each interface, verbatim with its comments.
	text map[string]string
	// quiet: by interface, the properties whose changes cause no signal.
	quiet map[string]map[string]bool
}

// newContract parses the XML. It fails only if the XML is invalid, which a test
// prevents.
func newContract() (*contract, error) {
	c := &contract{
		interfaces: map[string]introspect.Interface{},
		text:       map[string]string{},
		quiet:      map[string]map[string]bool{},
	}
	for _, source := range []string{api.ManagerXML, api.InterfaceXML, standardXML} {
		var n introspect.Node
		if err := xml.Unmarshal([]byte(source), &n); err != nil {
			return nil, fmt.Errorf("reading the D-Bus interface description: %w", err)
		}
		for _, i := range n.Interfaces {
			_, rest, found := strings.Cut(source, `<interface name="`+i.Name+`"`)
			body, _, ended := strings.Cut(rest, "</interface>")
			if !found || !ended {
				return nil, fmt.Errorf("reading the D-Bus interface description: no text of %s", i.Name)
			}
			c.interfaces[i.Name] = i
			c.text[i.Name] = `  <interface name="` + i.Name + `"` + body + "</interface>\n"
			c.quiet[i.Name] = map[string]bool{}
			for _, p := range i.Properties {
				for _, a := range p.Annotations {
					if a.Name == "org.freedesktop.DBus.Property.EmitsChangedSignal" && a.Value == "false" {
						c.quiet[i.Name][p.Name] = true
					}
				}
			}
		}
	}
	return c, nil
}

// interfacesOf lists the interfaces of the objects of a kind.
func interfacesOf(k kind) []string {
	switch k {
	case node:
		return []string{peerInterface, introspectInterface}
	case manager:
		return []string{peerInterface, introspectInterface, propertiesInterface, objectManagerInterface, api.ManagerInterface}
	case anENI:
		return []string{peerInterface, introspectInterface, propertiesInterface, api.InterfaceInterface}
	case logControl:
		return []string{peerInterface, introspectInterface, propertiesInterface, logControlInterface}
	default:
		return nil
	}
}

// introspectXML returns the description of the object at path, which must exist.
func (c *contract) introspectXML(v *view, path dbus.ObjectPath) string {
	var b strings.Builder
	b.WriteString(strings.TrimLeft(introspect.IntrospectDeclarationString, "\n\t"))
	b.WriteString("<node>\n")
	for _, name := range interfacesOf(v.kindOf(path)) {
		b.WriteString(c.text[name])
	}
	for _, child := range v.children(path) {
		fmt.Fprintf(&b, "  <node name=%q/>\n", child)
	}
	b.WriteString("</node>\n")
	return b.String()
}

// children returns the next path elements below path, sorted.
func (v *view) children(path dbus.ObjectPath) []string {
	switch path {
	case "/":
		return []string{"org"}
	case "/org":
		return []string{strings.TrimPrefix(api.ObjectPath, "/org/"), "freedesktop"}
	case "/org/freedesktop":
		return []string{strings.TrimPrefix(logControlPath, "/org/freedesktop/")}
	case api.ObjectPath:
		return []string{strings.TrimPrefix(api.InterfacePath, api.ObjectPath+"/")}
	case api.InterfacePath:
		var children []string
		for p := range v.interfaces {
			children = append(children, strings.TrimPrefix(string(p), api.InterfacePath+"/"))
		}
		slices.Sort(children)
		return children
	default:
		return nil
	}
}
