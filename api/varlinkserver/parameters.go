package varlinkserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/varlink/go/varlink/idl"

	"ec2netd/api"
)

// serviceInterface is the interface that every Varlink service has.
const serviceInterface = "org.varlink.service"

// parameters are the parameters of a method, by name.
type parameters map[string]*idl.Type

// contract contains the parameters of all methods, by the full name of the method. The
// library's decoder ignores unknown parameters, and does not report which one has the
// wrong type.
type contract map[string]parameters

// newContract reads the parameters from the interface description. The library cannot
// parse some types of io.systemd.Metrics, and has its own org.varlink.service: the
// methods of these are listed here.
func newContract() (contract, error) {
	c := contract{
		serviceInterface + ".GetInfo":                 {},
		serviceInterface + ".GetInterfaceDescription": {"interface": {Kind: idl.TypeString}},
		api.MetricsInterface + ".List":                {},
		api.MetricsInterface + ".Describe":            {},
	}
	description, err := idl.New(api.NetworkVarlink)
	if err != nil {
		return nil, fmt.Errorf("reading the description of %s: %w", api.VarlinkInterface, err)
	}
	for _, m := range description.Methods {
		p := parameters{}
		for _, f := range m.In.Fields {
			p[f.Name] = f.Type
		}
		c[description.Name+"."+m.Name] = p
	}
	return c, nil
}

// check returns the name of the first parameter of a call that is unknown or missing, or
// that has the wrong type; it returns "" if there is none. It does not check unknown
// methods, which are refused elsewhere.
func (c contract) check(method string, given json.RawMessage) (invalid string) {
	known, ok := c[method]
	if !ok {
		return ""
	}
	var values map[string]json.RawMessage
	if len(given) > 0 && json.Unmarshal(given, &values) != nil {
		return "parameters"
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if t := known[name]; t == nil || !matches(t, values[name]) {
			return name
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if _, ok := values[name]; !ok && known[name].Kind != idl.TypeMaybe {
			return name
		}
	}
	return ""
}

// matches reports whether a value has a type. It accepts any object as a structure,
// which the generated code decodes.
func matches(t *idl.Type, value json.RawMessage) bool {
	is := func(v any) bool { return json.Unmarshal(value, v) == nil && string(value) != "null" }
	switch t.Kind {
	case idl.TypeMaybe:
		return string(value) == "null" || matches(t.ElementType, value)
	case idl.TypeBool:
		return is(new(bool))
	case idl.TypeInt:
		return is(new(int64))
	case idl.TypeFloat:
		return is(new(float64))
	case idl.TypeString, idl.TypeEnum:
		return is(new(string))
	case idl.TypeArray:
		var elements []json.RawMessage
		return is(&elements) && !slices.ContainsFunc(elements, func(e json.RawMessage) bool { return !matches(t.ElementType, e) })
	case idl.TypeAlias:
		return string(value) != "null"
	}
	return is(new(map[string]json.RawMessage))
}
