package dbusserver

import (
	"strings"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/service/state"
)

// interfacePath returns the object path of an ENI.
func interfacePath(e *state.Interface) dbus.ObjectPath {
	return namedPath(e.ID())
}

func namedPath(id string) dbus.ObjectPath {
	return dbus.ObjectPath(api.InterfacePath + "/" + escapeLabel(id))
}

// escapeLabel turns any string into an element of an object path, as systemd does for
// its units (sd_bus_path_encode(3)): each byte that is not an ASCII letter or digit,
// and a leading digit, becomes _ and two hex digits; the empty string becomes _.
func escapeLabel(s string) string {
	if s == "" {
		return "_"
	}
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0:
			b.WriteByte(c)
		default:
			b.WriteByte('_')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}
