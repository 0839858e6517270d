package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// elsewhere is what of an error of the bus is no failure of the attack: the bus itself has
// ended the connection, or refused to carry the message.
func carry(b *bus, m *message) (*bus, error) {
	if err := b.send(m); err == nil {
		return b, nil
	}
	b.close()
	return dial()
}

func devNull() (*os.File, error) { return os.OpenFile("/dev/null", os.O_RDWR, 0) }

// still checks that the daemon that was attacked still answers.
func still(pid int, said string) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return said, err
	}
	defer b.close()
	return fmt.Sprintf("%s; the daemon has %d connections", said, len(own)), b.answered(describe())
}

func signalFDs(pid int) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return "", err
	}
	null, err := devNull()
	if err != nil {
		return "", err
	}
	fd := int(null.Fd())
	for range 5 {
		for _, to := range own {
			for _, m := range []*message{
				{signature: "ah", body: u32(u32(nil, 4), 0), fds: []int{fd}},
				{signature: "ah", body: u32(u32(u32(nil, 8), 0), 1), fds: []int{fd, fd}},
				{signature: "h", body: u32(nil, 0), fds: []int{fd}},
				{signature: "v", body: u32(append(sig(nil, "ah"), 0), 4), fds: []int{fd}},
				{fds: []int{fd, fd, fd, fd}},
			} {
				if m.signature == "v" {
					m.body = u32(m.body, 0)
				}
				m.kind, m.path, m.iface, m.member, m.to = typeSignal, "/a", "a.b", "C", to
				if b, err = carry(b, m); err != nil {
					return "", err
				}
			}
		}
	}
	b.close()
	return still(pid, fmt.Sprintf("sent to %q", own))
}

func callFDs(pid int) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return "", err
	}
	null, err := devNull()
	if err != nil {
		return "", err
	}
	fd := int(null.Fd())
	for range 10 {
		for _, to := range append(own, busName) {
			for _, signature := range []string{"ah", "h", "a{sh}", ""} {
				m := &message{kind: typeCall, path: managerPath, iface: managerInterface, member: "Describe", to: to, signature: signature, fds: []int{fd, fd}}
				switch signature {
				case "ah":
					m.body = u32(u32(nil, 4), 1)
				case "h":
					m.body = u32(nil, 1)
				case "a{sh}":
					m.body = u32(str(pad(u32(nil, 12), 8), "abc"), 1)
				}
				if b, err = carry(b, m); err != nil {
					return "", err
				}
			}
		}
	}
	b.close()
	return still(pid, fmt.Sprintf("sent to %q", own))
}

func large(pid int) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return "", err
	}
	const size = 30 << 20
	bytesBody := append(u32(nil, size-4), make([]byte, size-4)...)
	// Small values cost the most once they are decoded: an array of variants of a byte.
	variants := u32(nil, 0)
	// The bus takes seconds to check more of them.
	for len(variants) < size/8 {
		variants = append(variants, 1, 'y', 0, 0)
	}
	variants = append(u32(nil, uint32(len(variants)-4)), variants[4:]...)
	for _, body := range []struct {
		signature string
		bytes     []byte
	}{{"ay", bytesBody}, {"av", variants}} {
		for _, to := range own {
			for _, m := range []*message{
				{kind: typeSignal, path: "/a", iface: "a.b", member: "C", to: to},
				{kind: typeSignal, path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: "NameOwnerChanged", to: to},
				{kind: typeCall, flags: flagNoReply, path: managerPath, iface: managerInterface, member: "Describe", to: to},
				{kind: typeCall, path: managerPath, iface: "org.freedesktop.DBus.Properties", member: "Set", to: to},
			} {
				m.signature, m.body = body.signature, body.bytes
				if b, err = carry(b, m); err != nil {
					return "", err
				}
				// One at a time: while the bus checks one it serves nobody.
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
	// The bus has read all of it once it answers.
	if _, err := b.ask("GetId", "", nil); err != nil {
		if b, err = dial(); err != nil {
			return "", err
		}
	}
	b.close()
	return still(pid, fmt.Sprintf("%d MiB of bytes and %d MiB of variants to %q", size>>20, size>>23, own))
}

// deep is a variant of a variant … of a byte.
func deep(levels int) []byte {
	var b []byte
	for range levels {
		b = sig(b, "v")
	}
	return append(sig(b, "y"), 7)
}

func nested(pid int) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return "", err
	}
	const levels = 61 // within one more, 62
	for range 5 {
		for _, to := range own {
			for _, m := range []*message{
				{kind: typeSignal, path: "/a", iface: "a.b", member: "C", signature: "v", body: deep(levels)},
				{kind: typeSignal, path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: "NameOwnerChanged", signature: "v", body: deep(levels)},
				{kind: typeSignal, path: "/org/freedesktop/network1", iface: "org.freedesktop.DBus.Properties", member: "PropertiesChanged", signature: "v", body: deep(levels)},
				{kind: typeError, errorName: "a.b.C", replySerial: 3, signature: "v", body: deep(levels)},
				{kind: typeReply, replySerial: 3, signature: "v", body: deep(levels)},
				{kind: typeCall, path: managerPath, iface: managerInterface, member: "Describe", signature: "v", body: deep(levels)},
				{kind: typeCall, path: managerPath, iface: managerInterface, member: "Refresh", signature: "v", body: deep(levels)},
			} {
				m.to = to
				if b, err = carry(b, m); err != nil {
					return "", err
				}
			}
			for _, property := range []string{"LogLevel", "Version"} {
				m := &message{kind: typeCall, path: "/org/freedesktop/LogControl1", iface: "org.freedesktop.DBus.Properties", member: "Set", to: to, signature: "ssv"}
				m.body = append(str(str(nil, "org.freedesktop.LogControl1"), property), deep(levels)...)
				if b, err = carry(b, m); err != nil {
					return "", err
				}
			}
			// In a header field.
			m := describe()
			m.kind, m.to, m.extra = typeCall, to, [][]byte{append([]byte{77}, deep(levels-2)...)}
			if b, err = carry(b, m); err != nil {
				return "", err
			}
		}
	}
	b.close()
	return still(pid, fmt.Sprintf("sent to %q", own))
}

// fields: a field that the specification does not know "must be ignored".
func fields(pid int) (string, error) {
	b, err := dial()
	if err != nil {
		return "", err
	}
	for _, extra := range [][][]byte{
		{field(99, 's', str(nil, "container"))},
		{field(77, 'y', []byte{1})},
		{field(255, 'u', u32(nil, 1)), field(254, 'g', sig(nil, "a{sv}"))},
		{append([]byte{200, 2, 'a', 'y', 0}, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3)},
		{append([]byte{201}, deep(8)...)},
	} {
		m := describe()
		m.extra = extra
		if err := b.answered(m); err != nil {
			return "", fmt.Errorf("with the header fields %q: %w", extra, err)
		}
	}
	b.close()
	return still(pid, "answered")
}

func stray(pid int) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return "", err
	}
	owner := func(name, from, to string) []byte { return str(pad(str(pad(str(nil, name), 4), from), 4), to) }
	const signals = 2000
	for i := range signals {
		to := own[i%len(own)]
		var m *message
		switch i / len(own) % 6 {
		case 0:
			m = &message{path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: "NameOwnerChanged", signature: "sss", body: owner("org.freedesktop.network1", ":1.1", ":1.2")}
		case 1:
			m = &message{path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: "NameOwnerChanged", signature: "sss", body: owner("org.freedesktop.network1", ":1.1", "")}
		case 2:
			m = &message{path: "/org/freedesktop/network1", iface: "org.freedesktop.DBus.Properties", member: "PropertiesChanged", signature: "s", body: str(nil, "org.freedesktop.network1.Manager")}
		case 3:
			m = &message{path: "/org/freedesktop/systemd1", iface: "org.freedesktop.systemd1.Manager", member: "Reloading", signature: "b", body: u32(nil, 0)}
		case 4:
			m = &message{path: "/org/freedesktop/systemd1", iface: "org.freedesktop.systemd1.Manager", member: "UnitNew", signature: "so", body: str(pad(str(nil, "systemd-networkd.service"), 4), "/a")}
		case 5:
			m = &message{path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: "NameLost", signature: "s", body: str(nil, busName)}
		}
		m.kind, m.to = typeSignal, to
		if err := b.send(m); err != nil {
			return "", err
		}
		// One after the other: a burst of them would ask for one pass only.
		time.Sleep(5 * time.Millisecond)
	}
	b.close()
	return still(pid, fmt.Sprintf("%d signals to %q", signals, own))
}

// forged sends replies and errors to the daemon for all the calls that it may be making.
func forged(pid int) (string, error) {
	b, own, err := daemon(pid)
	if err != nil {
		return "", err
	}
	for serial := range uint32(500) {
		for _, to := range own {
			for _, kind := range []byte{typeReply, typeError, 5, 255} {
				m := &message{kind: kind, to: to, replySerial: serial + 1, signature: "s", body: str(nil, "forged")}
				if kind == typeError {
					m.errorName = "org.freedesktop.DBus.Error.ServiceUnknown"
				}
				if b, err = carry(b, m); err != nil {
					return "", err
				}
			}
		}
	}
	b.close()
	return still(pid, fmt.Sprintf("sent to %q", own))
}

// calls floods: four connections whose replies nobody reads, as far as the bus lets them.
func calls(pid int) (string, error) {
	refused := 0
	var open []*bus
	for range 4 {
		b, err := dial()
		if err != nil {
			return "", err
		}
		defer b.close()
		open = append(open, b)
	}
	const each = 1500
	for i := range each {
		for k, b := range open {
			if b == nil {
				continue
			}
			m := describe()
			switch i % 4 {
			case 1:
				m.iface, m.member = "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"
			case 2:
				m.iface, m.member, m.signature, m.body = "org.freedesktop.DBus.Properties", "GetAll", "s", str(nil, managerInterface)
			case 3:
				m.iface, m.member = "org.freedesktop.DBus.Introspectable", "Introspect"
			}
			m.kind = typeCall
			_ = b.conn.SetWriteDeadline(time.Now().Add(time.Second))
			if err := b.send(m); err != nil {
				// Half a message may be out.
				refused++
				open[k] = nil
			}
		}
		if i%50 == 49 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	time.Sleep(2 * time.Second) // the replies stay unread
	return still(pid, fmt.Sprintf("%d calls on each of 4 connections, of which the bus took no more of %d", each, refused))
}

func introspect(pid int) (string, error) {
	b, err := dial()
	if err != nil {
		return "", err
	}
	const times = 3000
	for i := range times {
		path := []string{
			"/", "/org", "/org/ec2netd1/interface", "/org/ec2netd1/interface/eni_2d0000", "/a/b/c",
			fmt.Sprintf("/org/ec2netd1/interface/x%d", i), "/org/ec2netd1" + strings.Repeat("/a", i%100),
		}[i%7]
		_, err := b.call(&message{path: path, iface: "org.freedesktop.DBus.Introspectable", member: "Introspect", to: busName})
		var refused *callError
		if err != nil && !errors.As(err, &refused) {
			return "", err
		}
		if refused != nil && !strings.HasSuffix(refused.name, ".UnknownObject") && !strings.HasSuffix(refused.name, ".LimitsExceeded") {
			return "", err
		}
		if i%100 == 99 {
			time.Sleep(50 * time.Millisecond)
		}
	}
	b.close()
	return still(pid, fmt.Sprintf("%d times", times))
}

// buses connects as often as the bus lets one user, and calls on each.
func buses(pid int) (string, error) {
	var open []*bus
	for range 200 {
		b, err := dial()
		if err != nil {
			break // the bus has its own limit
		}
		defer b.close()
		open = append(open, b)
	}
	for range 10 {
		for _, b := range open {
			m := describe()
			m.kind = typeCall
			if err := b.send(m); err != nil {
				return "", err
			}
		}
	}
	time.Sleep(2 * time.Second)
	for _, b := range open {
		b.close()
	}
	return still(pid, fmt.Sprintf("%d connections", len(open)))
}

// refreshes asks for what it may not do, from several connections.
func refreshes(pid int) (string, error) { return refuse(pid, 0, 300) }

func interactive(pid int) (string, error) { return refuse(pid, flagInteractive, 60) }

func refuse(pid int, flags byte, times int) (string, error) {
	var open []*bus
	for range 40 {
		b, err := dial()
		if err != nil {
			return "", err
		}
		defer b.close()
		open = append(open, b)
	}
	allowed := []string{"AccessDenied", "LimitsExceeded", "InteractiveAuthorizationRequired"}
	refused := 0
	for i := range times {
		for _, b := range open {
			m := describe()
			m.kind, m.flags, m.member, m.signature, m.body = typeCall, flags, "Refresh", "b", u32(nil, uint32(i%2))
			if i%4 == 3 {
				m.path, m.iface, m.member, m.signature = "/org/freedesktop/LogControl1", "org.freedesktop.DBus.Properties", "Set", "ssv"
				m.body = str(append(str(str(nil, "org.freedesktop.LogControl1"), "LogLevel"), sig(nil, "s")...), "debug")
			}
			if err := b.send(m); err != nil {
				return "", err
			}
		}
		// On the first connection each is waited for, which sets the pace; polkit may be
		// asking somebody, who does not answer.
		b := open[0]
		_ = b.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		for {
			r, err := b.receive()
			if err != nil {
				if !os.IsTimeout(err) {
					return "", err
				}
				// Half of a reply may be lost: go on with another connection.
				b.close()
				if open[0], err = dial(); err != nil {
					return "", err
				}
				break
			}
			if r.kind == typeReply {
				return "", errors.New("a user without permission may refresh or set the log level")
			}
			if r.kind == typeError {
				text, _ := readString(r.body)
				if err := refusedWith(&callError{r.errorName, text}, allowed...); err != nil {
					return "", err
				}
				refused++
				break
			}
		}
	}
	for _, b := range open {
		b.close()
	}
	return still(pid, fmt.Sprintf("%d refusals on one of %d connections", refused, len(open)))
}

func name(pid int) (string, error) {
	b, err := dial()
	if err != nil {
		return "", err
	}
	if _, err := b.ask("RequestName", "su", u32(str(nil, busName), 7)); refusedWith(err, "AccessDenied") != nil {
		return "", fmt.Errorf("taking the name: %w", err)
	}
	for _, m := range []*message{
		{path: "/org/freedesktop/network1", iface: "org.freedesktop.network1.Manager", member: "Reload", to: "org.freedesktop.network1"},
		{path: "/org/freedesktop/systemd1", iface: "org.freedesktop.systemd1.Manager", member: "StopUnit", to: "org.freedesktop.systemd1", signature: "ss", body: str(pad(str(nil, "ec2netd.service"), 4), "replace")},
		{path: "/org/freedesktop/systemd1", iface: "org.freedesktop.systemd1.Manager", member: "StartUnit", to: "org.freedesktop.systemd1", signature: "ss", body: str(pad(str(nil, "ec2netd-orphans.service"), 4), "replace")},
	} {
		_, err := b.call(m)
		if refusedWith(err, "AccessDenied", "InteractiveAuthorizationRequired") != nil {
			return "", fmt.Errorf("%s: %w", m.member, err)
		}
	}
	b.close()
	return still(pid, "refused")
}

// files tries to write, replace and remove where the daemon and networkd read.
func files(pid int) (string, error) {
	tried := 0
	for _, dir := range []string{"/run/ec2netd", "/run/systemd/network", "/run/systemd/report", "/var/lib/ec2netd", "/etc/systemd/network", "/etc", "/run/systemd/netif/links"} {
		tried++
		if err := os.WriteFile(filepath.Join(dir, "attack"), nil, 0o644); err == nil {
			return "", fmt.Errorf("can write to %s", dir)
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			tried++
			if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
				f.Close()
				return "", fmt.Errorf("can write to %s", name)
			}
			if err := os.Rename(name, name+".attack"); err == nil {
				return "", fmt.Errorf("can rename %s", name)
			}
		}
	}
	return still(pid, fmt.Sprintf("%d refused", tried))
}
