package bus_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// bare are the functions of godbus that create a connection without a guard.
var bare = map[string]bool{
	"Connect": true, "Dial": true, "DialHandler": true, "NewConn": true, "NewConnHandler": true,
	"ConnectSystemBus": true, "SystemBus": true, "SystemBusPrivate": true, "SystemBusPrivateHandler": true,
	"ConnectSessionBus": true, "SessionBus": true, "SessionBusPrivate": true, "SessionBusPrivateHandler": true,
	"SessionBusPrivateNoAutoStartup": true,
}

// TestOnlyDialer: only this package dials a bus, except for tests and their fakes.
func TestOnlyDialer(t *testing.T) { // J1
	const root = "../.."
	files, dials := 0, 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || rel == "build" || rel == "api/apitest" || rel != "." && d.Name()[0] == '.'):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go"):
			return nil
		}
		files++
		found, err := bareDials(path)
		if rel == "service/bus/bus.go" {
			dials = len(found)
			return err
		}
		for _, at := range found {
			t.Errorf("%s: use bus.Dial: without its guard any local user can end the process", at)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 || dials != 1 {
		t.Errorf("%d files were looked at, and %d dials found in bus.go", files, dials)
	}
}

// bareDials lists the places where a file dials a bus itself.
func bareDials(path string) (at []string, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, 0)
	if err != nil {
		return nil, err
	}
	name := ""
	for _, i := range file.Imports {
		switch strings.Trim(i.Path.Value, `"`) {
		case "github.com/godbus/dbus/v5":
			name = "dbus"
			if i.Name != nil {
				name = i.Name.Name
			}
			if name == "." {
				at = append(at, set.Position(i.Pos()).String())
			}
		case "github.com/coreos/go-systemd/v22/dbus", "github.com/coreos/go-systemd/v22/login1", "github.com/coreos/go-systemd/v22/machine1", "github.com/coreos/go-systemd/v22/import1":
			// Their connections have no deadlines either.
			at = append(at, set.Position(i.Pos()).String())
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && bare[s.Sel.Name] {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == name && name != "" {
				at = append(at, set.Position(s.Pos()).String())
			}
		}
		return true
	})
	return at, nil
}
