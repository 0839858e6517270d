package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
)

// fakeHost is a host whose names a test says.
type fakeHost struct {
	staticName, name string
	staticErr, err   error
	set              []string
}

func (h *fakeHost) static(context.Context) (string, error) { return h.staticName, h.staticErr }
func (h *fakeHost) current() (string, error)               { return h.name, nil }
func (h *fakeHost) setTransient(_ context.Context, name string) (string, error) {
	h.set = append(h.set, name)
	return "a fake", h.err
}

func TestSetHostname(t *testing.T) { // I6
	const name = "ip-10-0-0-10.ec2.internal"
	says := func(name string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return name, err }
	}
	for _, c := range []struct {
		what  string
		host  fakeHost
		read  func(context.Context) (string, error)
		set   string
		out   string
		fails string
	}{
		{what: "none", read: says(name, nil), set: name, out: "set by a fake"},
		{what: "localhost is none", host: fakeHost{staticName: "localhost"}, read: says(name, nil), set: name, out: "now"},
		{what: "static", host: fakeHost{staticName: "web1"}, read: says("", errors.New("must not be asked")), out: "stays web1, which is static"},
		{what: "the same", host: fakeHost{name: name}, read: says(name, nil), out: "already"},
		{what: "nobody knows", host: fakeHost{staticErr: errors.New("no disk")}, read: says(name, nil), fails: "no disk"},
		{what: "no metadata", read: says("", errors.New("no answer")), fails: "no answer"},
		{what: "refused", host: fakeHost{err: errors.New("not permitted")}, read: says(name, nil), set: name, fails: "not permitted"},
	} {
		var out bytes.Buffer
		err := (&ctl{environment: environment{stdout: &out}}).setHostname(t.Context(), &c.host, c.read)
		if (err != nil) != (c.fails != "") || (err != nil && !strings.Contains(err.Error(), c.fails)) {
			t.Errorf("%s: %v", c.what, err)
		}
		if strings.Join(c.host.set, " ") != c.set || !strings.Contains(out.String(), c.out) {
			t.Errorf("%s: set %q, printed %q", c.what, c.host.set, &out)
		}
	}
}

func TestStaticIn(t *testing.T) { // I6
	for text, want := range map[string]string{"web1\n": "web1", "# no\n\n web1 \nweb2\n": "web1", "": "", "\n": ""} {
		if got := staticIn(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// machineAt makes a root directory whose configuration leads to a metadata service.
func machineAt(t *testing.T, service http.Handler) string {
	t.Helper()
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	root := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755),
		os.WriteFile(filepath.Join(root, "etc/ec2netd.conf"), []byte("[Match]\nPlatform=any\n[Metadata]\nEndpoint="+server.URL+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestHostnameElsewhere: on a machine that is no EC2 instance nobody is asked, and a boot does
// not fail for it.
func TestHostnameElsewhere(t *testing.T) {
	root := machineAt(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the service was asked") }))
	text, err := os.ReadFile(filepath.Join(root, "etc/ec2netd.conf"))
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "etc/ec2netd.conf"), bytes.ReplaceAll(text, []byte("Platform=any"), []byte("Platform=ec2")), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := &ctl{environment: environment{root: root, stdout: &out}}
	h := &fakeHost{}
	if err := c.setHostname(t.Context(), h, c.readHostname); err != nil || len(h.set) > 0 || !strings.Contains(out.String(), "EC2 instance") {
		t.Errorf("%v, set %q: %s", err, h.set, &out)
	}
	if s, err := c.look(); err != nil {
		t.Error(err)
	} else if _, err := c.readDump(t.Context(), s); err == nil || !strings.Contains(hinted(err), "Platform=any") {
		t.Errorf("a dump: %v", err)
	}
}

// TestReadHostname: it is asked until there is an answer, and no longer.
func TestReadHostname(t *testing.T) { // I6
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: "02:00:00:00:00:01", Hostname: "ip-10-0-0-10.ec2.internal"})
	service.AddFault(imds.Fault{Pattern: "local-hostname", Effect: imds.Status, Status: 503, Count: 2})
	c := &ctl{environment: environment{root: machineAt(t, service)}}
	if name, err := c.readHostname(t.Context()); err != nil || name != "ip-10-0-0-10.ec2.internal" {
		t.Errorf("%q, %v", name, err)
	}
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: "02:00:00:00:00:01"})
	if name, err := c.readHostname(t.Context()); err == nil {
		t.Errorf("no name in the metadata, and got %q", name)
	}
	service.AddFault(imds.Fault{Pattern: "local-hostname", Effect: imds.Status, Status: 503})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if name, err := c.readHostname(ctx); err == nil {
		t.Errorf("the service fails, and got %q", name)
	}
}

// hinted is an error with the line on what to do about it, if it has one.
func hinted(err error) string {
	text := err.Error()
	if a, ok := asAdvice(err); ok {
		text += "\n" + a.hint
	}
	return text
}
