package state

import (
	"reflect"
	"testing"
	"time"
)

func sample() *State {
	return &State{State: Configured, Conflicts: []Conflict{{Name: "NetworkManager"}}, Interfaces: []Interface{{Name: "ens5", Addresses: []string{"10.0.1.7"}}, {Name: "ens6"}}}
}

// TestSame changes each field in turn, so that no field is forgotten when the model
// grows.
func TestSame(t *testing.T) {
	quiet := map[string]bool{"Metadata.LastSuccess": true, "Metadata.Requests": true, "Metadata.Errors": true}
	if !sample().Same(sample()) {
		t.Error("equal states are not the same")
	}
	empty := sample()
	empty.Interfaces[1].Addresses = []string{}
	if !sample().Same(empty) {
		t.Error("an empty list is not the same as none")
	}
	more := sample()
	more.Interfaces = append(more.Interfaces, Interface{Name: "ens7"})
	if sample().Same(more) {
		t.Error("one more interface counts as the same")
	}
	var try func(path string, pick func(*State) reflect.Value)
	try = func(path string, pick func(*State) reflect.Value) {
		v := pick(sample())
		for i := range v.NumField() {
			name := path + v.Type().Field(i).Name
			if v.Field(i).Kind() == reflect.Struct && v.Field(i).Type() != reflect.TypeFor[time.Time]() {
				try(name+".", func(s *State) reflect.Value { return pick(s).Field(i) })
				continue
			}
			s := sample()
			f := pick(s).Field(i)
			switch f.Kind() {
			case reflect.String:
				f.SetString(f.String() + "x")
			case reflect.Int:
				f.SetInt(f.Int() + 1)
			case reflect.Uint64:
				f.SetUint(f.Uint() + 1)
			case reflect.Bool:
				f.SetBool(!f.Bool())
			case reflect.Slice:
				f.Set(reflect.Append(f, reflect.Zero(f.Type().Elem())))
			case reflect.Struct:
				f.Set(reflect.ValueOf(time.Now()))
			default:
				t.Fatalf("%s: the test knows no change of %s", name, f.Type())
			}
			if got, want := sample().Same(s), quiet[name]; got != want {
				t.Errorf("%s changed: Same says %v", name, got)
			}
		}
	}
	try("", func(s *State) reflect.Value { return reflect.ValueOf(s).Elem() })
	try("Conflict.", func(s *State) reflect.Value { return reflect.ValueOf(&s.Conflicts[0]).Elem() })
	try("Interface.", func(s *State) reflect.Value { return reflect.ValueOf(&s.Interfaces[1]).Elem() })
}
