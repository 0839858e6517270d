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

// managerProperties are the properties of the manager object.
func managerProperties(s *state.State) properties {
	p := properties{}
	p.add("", reflect.ValueOf(*s))
	return p
}

// eniObject is what the object of an ENI shows.
type eniObject struct {
	properties properties
	// describe returns the ENI as JSON. It is kept, so that describing often costs
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
// letter, prefixed by that of the structs around it. ENIs are left out, which are objects,
// and items, of which there can be hundreds: Describe alone tells those. That it is done
// by reflection is what keeps the names of D-Bus
// and JSON the same; the tests hold the result to the XML.
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

// text makes a string fit for D-Bus, which knows UTF-8 without NUL only and ends the
// connection of a sender of anything else. Link names and errors may have any byte.
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

// conflict is a [state.Conflict] as D-Bus has it.
type conflict struct {
	Name     string
	Evidence []string
	Advice   string
}

// changed returns the properties of now that before has not, or has otherwise, but
// for those that quiet names.
func changed(before, now properties, quiet map[string]bool) properties {
	diff := properties{}
	for name, value := range now {
		if !quiet[name] && !reflect.DeepEqual(before[name].Value(), value.Value()) {
			diff[name] = value
		}
	}
	return diff
}

// view is all that the objects show at one moment. It is never changed.
type view struct {
	state   *state.State
	manager properties
	// interfaces by object path.
	interfaces map[dbus.ObjectPath]*eniObject
	// paths of the interfaces of state.
	paths map[*state.Interface]dbus.ObjectPath
	// describe returns the state as JSON. It is kept, so that describing often
	// costs little.
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
			// Two links with one MAC address: a name is the link's alone.
			p = namedPath(e.Name)
		}
		v.interfaces[p], v.paths[e] = newENIObject(e), p
	}
	return v
}

// kind is what an object path stands for.
type kind int

const (
	none       kind = iota // no object
	node                   // only a step on the way to one
	manager                // the daemon
	anENI                  // an ENI
	logControl             // the log
)

// logControlPath is where systemctl service-log-level looks, see
// org.freedesktop.LogControl1(5).
const logControlPath = "/org/freedesktop/LogControl1"

// kindOf tells what path stands for.
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

// propertiesOf returns the interface that the object at path has its properties in,
// and them; "" and nil if it has none.
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
