package dbusserver

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/service/state"
)

// properties maps the name of a property to its value.
type properties map[string]dbus.Variant

// managerProperties returns the properties of the manager object.
func managerProperties(s *state.State) properties {
	p := properties{}
	p.add("", reflect.ValueOf(*s))
	return p
}

// eniObject is the content of the object of an ENI.
type eniObject struct {
	properties properties
	// describe returns the ENI as JSON. The result is cached, so that repeated calls cost
	// little.
	describe func() (string, error)
}

func newENIObject(e *state.Interface) *eniObject {
	o := &eniObject{properties: properties{}}
	o.properties.add("", reflect.ValueOf(*e))
	o.describe = sync.OnceValues(func() (string, error) {
		b, err := json.Marshal(api.NonNilInterface(e))
		return string(b), err
	})
	return o
}

// add adds a property for each field of a struct: the JSON name with a capital first
// letter, prefixed by the names of the enclosing structs. It leaves out ENIs, which are
// objects, and items, of which there can be hundreds: only Describe returns those. It uses
// reflection to keep the names of D-Bus and JSON equal; the tests compare the result with
// the XML.
func (p properties) add(prefix string, v reflect.Value) {
	for i := range v.NumField() {
		tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		name := prefix + strings.ToUpper(tag[:1]) + tag[1:]
		field := v.Field(i)
		switch value := field.Interface().(type) {
		case time.Time:
			var usec uint64
			if !value.IsZero() {
				usec = uint64(value.UnixMicro())
			}
			p[name] = dbus.MakeVariant(usec)
		case []string:
			p[name] = dbus.MakeVariant(texts(value))
		case []state.Conflict:
			list := make([]conflict, len(value))
			for i, c := range value {
				list[i] = conflict{text(c.Name), texts(c.Evidence), text(c.Advice)}
			}
			p[name] = dbus.MakeVariant(list)
		case []state.Interface, []state.Item:
		default:
			switch field.Kind() {
			case reflect.Struct:
				p.add(name, field)
			case reflect.String:
				p[name] = dbus.MakeVariant(text(field.String()))
			case reflect.Int:
				p[name] = dbus.MakeVariant(int32(field.Int()))
			case reflect.Bool, reflect.Uint64:
				p[name] = dbus.MakeVariant(value)
			default:
				panic(fmt.Sprintf("property %s: no D-Bus type for %s", name, field.Type()))
			}
		}
	}
}

// text makes a string valid for D-Bus, which only permits UTF-8 without NUL and
// disconnects the sender of anything else. Link names and errors may contain any byte.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func texts(all []string) []string {
	list := make([]string, len(all))
	for i, s := range all {
		list[i] = text(s)
	}
	return list
}

// conflict is a [state.Conflict] in the form of D-Bus.
type conflict struct {
	Name     string
	Evidence []string
	Advice   string
}

// changed returns the properties of now that are missing or different in before, except
// those in quiet.
func changed(before, now properties, quiet map[string]bool) properties {
	diff := properties{}
	for name, value := range now {
		if !quiet[name] && !reflect.DeepEqual(before[name].Value(), value.Value()) {
			diff[name] = value
		}
	}
	return diff
}

// view is the content of all objects at one moment. It never changes.
type view struct {
	state   *state.State
	manager properties
	// interfaces by object path.
	interfaces map[dbus.ObjectPath]*eniObject
	// paths of the interfaces of state.
	paths map[*state.Interface]dbus.ObjectPath
	// describe returns the state as JSON. The result is cached, so that repeated calls
	// cost little.
	describe func() (string, error)
}

func newView(s *state.State) *view {
	v := &view{state: s, manager: managerProperties(s), interfaces: map[dbus.ObjectPath]*eniObject{}, paths: map[*state.Interface]dbus.ObjectPath{}}
	v.describe = sync.OnceValues(func() (string, error) {
		b, err := json.Marshal(api.NonNil(s))
		return string(b), err
	})
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		p := interfacePath(e)
		if _, taken := v.interfaces[p]; taken {
			// Two links have the same MAC address, but each has its own name.
			p = namedPath(e.Name)
		}
		v.interfaces[p], v.paths[e] = newENIObject(e), p
	}
	return v
}

// kind is the kind of an object path.
type kind int

const (
	none       kind = iota // no object
	node                   // only a parent of objects
	manager                // the daemon
	anENI                  // an ENI
	logControl             // the log
)

// logControlPath is the path that systemctl service-log-level uses, see
// org.freedesktop.LogControl1(5).
const logControlPath = "/org/freedesktop/LogControl1"

// kindOf returns the kind of path.
func (v *view) kindOf(path dbus.ObjectPath) kind {
	switch path {
	case "/", "/org", "/org/freedesktop", api.InterfacePath:
		return node
	case logControlPath:
		return logControl
	case api.ObjectPath:
		return manager
	}
	if _, ok := v.interfaces[path]; ok {
		return anENI
	}
	return none
}

// propertiesOf returns the interface that contains the properties of the object at path,
// and these properties; "" and nil if it has none.
func (v *view) propertiesOf(path dbus.ObjectPath) (name string, p properties) {
	switch v.kindOf(path) {
	case manager:
		return api.ManagerInterface, v.manager
	case anENI:
		return api.InterfaceInterface, v.interfaces[path].properties
	default:
		return "", nil
	}
}
