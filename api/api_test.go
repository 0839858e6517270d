package api_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5/introspect"
	"github.com/varlink/go/varlink/idl"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/orgec2netdnetwork"
	"ec2netd/service/state"
)

// TestFieldNames compares the Varlink IDL with the model: both must have the same names
// in the same order.
func TestFieldNames(t *testing.T) { // H2
	d, err := idl.New(api.NetworkVarlink)
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]*idl.Type{}
	for _, a := range d.Aliases {
		types[a.Name] = a.Type
	}
	for _, m := range d.Methods {
		types[m.Name] = m.Out
	}
	for name, model := range map[string]reflect.Type{
		"Describe":        reflect.TypeFor[state.State](),
		"Monitor":         reflect.TypeFor[state.State](),
		"Metadata":        reflect.TypeFor[state.Metadata](),
		"Networkd":        reflect.TypeFor[state.Networkd](),
		"Interface":       reflect.TypeFor[state.Interface](),
		"Item":            reflect.TypeFor[state.Item](),
		"Refresh":         reflect.TypeFor[state.Changes](),
		"InterfaceChange": reflect.TypeFor[state.InterfaceChange](),
	} {
		var want, got []string
		for i := range model.NumField() {
			tag, _, _ := strings.Cut(model.Field(i).Tag.Get("json"), ",")
			want = append(want, tag+" "+varlinkType(model.Field(i).Type))
		}
		if types[name] == nil {
			t.Errorf("the IDL has no %s", name)
			continue
		}
		for _, f := range types[name].Fields {
			got = append(got, f.Name+" "+typeName(f.Type))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s in the IDL:\n%q\nthe model has:\n%q", name, got, want)
		}
	}
	values := func(name string) (names []string) {
		for _, f := range types[name].Fields {
			names = append(names, f.Name)
		}
		return names
	}
	if got, want := values("ManagerState"), []string{
		string(state.Starting), string(state.Configured), string(state.Degraded), string(state.Offline), string(state.Unsupported),
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("ManagerState: %q, want %q", got, want)
	}
	if got, want := values("InterfaceState"), []string{
		string(state.ENIConfigured), string(state.ENIConfiguring), string(state.ENIPending), string(state.ENIShadowed),
		string(state.ENIOverridden), string(state.ENIContested), string(state.ENIUnmanaged), string(state.ENIDegraded),
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("InterfaceState: %q, want %q", got, want)
	}
	if got, want := values("ItemKind"), []string{
		string(state.ItemAddress), string(state.ItemRoute), string(state.ItemRule), string(state.ItemAltname), string(state.ItemMTU),
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("ItemKind: %q, want %q", got, want)
	}
}

func varlinkType(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Time]():
		return "?string"
	case reflect.TypeFor[state.Manager]():
		return "ManagerState"
	case reflect.TypeFor[state.ENI]():
		return "InterfaceState"
	case reflect.TypeFor[state.Kind]():
		return "ItemKind"
	case reflect.TypeFor[state.Answer]():
		return "?bool"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "[]" + varlinkType(t.Elem())
	case reflect.Int, reflect.Uint64:
		return "int"
	case reflect.Struct:
		return t.Name()
	default:
		return t.Kind().String()
	}
}

func typeName(t *idl.Type) string {
	switch t.Kind {
	case idl.TypeBool:
		return "bool"
	case idl.TypeInt:
		return "int"
	case idl.TypeString:
		return "string"
	case idl.TypeArray:
		return "[]" + typeName(t.ElementType)
	case idl.TypeMaybe:
		return "?" + typeName(t.ElementType)
	case idl.TypeAlias:
		return t.Alias
	default:
		return "?"
	}
}

// TestGenerated compares the generated code with the IDL: regenerating changes nothing,
// and no method is missing.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "org.ec2netd.Network.varlink")
	if err := os.WriteFile(source, []byte(api.NetworkVarlink), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "run", "github.com/varlink/go/cmd/varlink-go-interface-generator", source).CombinedOutput()
	if err != nil {
		t.Fatalf("generating: %v\n%s", err, out)
	}
	want, err := os.ReadFile(filepath.Join(dir, "orgec2netdnetwork.go"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("orgec2netdnetwork/orgec2netdnetwork.go")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("api/orgec2netdnetwork is not what the IDL generates: run go generate ./api/...")
	}
	generated := orgec2netdnetwork.VarlinkNew(nil)
	if generated.VarlinkGetName() != api.VarlinkInterface {
		t.Errorf("the IDL is of interface %s", generated.VarlinkGetName())
	}
	if generated.VarlinkGetDescription() != api.NetworkVarlink {
		t.Error("the generated description is not the IDL")
	}
	methods := reflect.TypeFor[*orgec2netdnetwork.VarlinkInterface]()
	for line := range strings.Lines(api.NetworkVarlink) {
		if name, is := strings.CutPrefix(line, "method "); is {
			name, _, _ = strings.Cut(name, "(")
			if _, has := methods.MethodByName(name); !has {
				t.Errorf("the generator left out method %s", name)
			}
		}
		if strings.TrimSpace(line) == "#" {
			t.Error("a bare # in the IDL swallows what follows")
		}
	}
}

func TestNonNil(t *testing.T) {
	s := &state.State{Interfaces: []state.Interface{{}}}
	b, err := json.Marshal(api.NonNil(s))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "null") {
		t.Errorf("null in %s", b)
	}
	if s.Interfaces[0].Addresses != nil {
		t.Error("NonNil changed its argument")
	}
	for _, c := range []*state.Changes{nil, {Interfaces: []state.InterfaceChange{{}}}} {
		b, err := json.Marshal(api.NonNilChanges(c))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "null") {
			t.Errorf("null in %s", b)
		}
	}
}

func TestFind(t *testing.T) {
	s := apitest.State()
	for _, id := range []string{"eni-0a1b2c3d4e5f60002", "02:00:00:00:00:02", "ens6", "device-number-1.0", "3"} {
		e, err := api.Find(s, id)
		if err != nil || e.Name != "ens6" {
			t.Errorf("Find(%q) = %v, %v", id, e, err)
		}
	}
	var no *api.NoSuchInterfaceError
	_, err := api.Find(s, "eni-0f")
	if !errors.As(err, &no) || no.ID != "eni-0f" {
		t.Fatalf("Find of an unknown ENI: %v", err)
	}
	for _, want := range []string{`"eni-0f"`, "altname", "eni-0a1b2c3d4e5f60002 (ens6)", "02:00:00:00:00:03 (ens7)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	_, err = api.Find(s, strings.Repeat("x", 1<<20))
	if len(err.Error()) > 1000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func TestRootOnly(t *testing.T) {
	if err := (api.RootOnly{}).Authorize(t.Context(), api.Caller{}, api.ActionRefresh); err != nil {
		t.Errorf("root: %v", err)
	}
	var no *api.NotPermittedError
	err := api.RootOnly{}.Authorize(t.Context(), api.Caller{UID: 1000}, api.ActionRefresh)
	if !errors.As(err, &no) || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("uid 1000: %v", err)
	}
}

// TestManPage compares org.ec2netd1(5) with the XML: the page has every method with its
// arguments, and every property with its type and its signal, in the order of the XML,
// and no other; and every error and polkit action.
func TestManPage(t *testing.T) { // H1
	text, err := os.ReadFile("org.ec2netd1.5")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for name, description := range map[string]string{
		api.ManagerInterface: api.ManagerXML, api.InterfaceInterface: api.InterfaceXML,
	} {
		var node introspect.Node
		if err := xml.Unmarshal([]byte(description), &node); err != nil {
			t.Fatal(err)
		}
		i := node.Interfaces[0]
		if len(node.Interfaces) != 1 || i.Name != name || len(i.Signals) > 0 {
			t.Fatalf("%+v is not %s", node, name)
		}
		var want []string
		for _, m := range i.Methods {
			item := ".It Fn " + m.Name
			for _, arg := range m.Args {
				direction := ""
				if arg.Direction == "out" {
					direction = "out "
				}
				item += fmt.Sprintf(" %q", direction+arg.Type+" "+arg.Name)
			}
			want = append(want, item)
		}
		for _, p := range i.Properties {
			item := ".It Va " + p.Name + " Vt " + p.Type
			for _, a := range p.Annotations {
				item += map[string]string{"const": " Pq const", "false": " Pq no signal"}[a.Value]
			}
			want = append(want, item)
		}
		_, section, _ := strings.Cut(page, "\n.Ss "+name+"\n")
		section, _, _ = strings.Cut(section, "\n.Ss ")
		got := regexp.MustCompile(`(?m)^\.It .*$`).FindAllString(section, -1)
		if !slices.Equal(got, want) {
			t.Errorf("%s: the page has\n%s\nthe XML\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for _, name := range []string{api.ErrorNoSuchInterface, api.ErrorRefreshFailed, api.ActionRefresh, api.ActionSetLog} {
		if !strings.Contains(page, "\n.It Li "+name+"\n") {
			t.Errorf("the page does not explain %s", name)
		}
	}
	for _, name := range []string{api.BusName, api.ObjectPath, api.InterfacePath, api.VarlinkInterface, api.VarlinkSocket} {
		if !strings.Contains(page, name) {
			t.Errorf("the page does not name %s", name)
		}
	}
}
