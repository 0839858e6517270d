package doctor

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

// Where one way hangs, the others answer all the same, and are not blamed.
func TestProbeHangs(t *testing.T) { // H5
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: "02:00:00:00:00:01"})
	server := httptest.NewServer(service)
	defer server.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	probes := probeAll(t.Context(), []metadata.Path{{Endpoint: "http://" + silent.Addr().String()}, {Endpoint: server.URL}, {Endpoint: server.URL}}, "", "test")
	if probes[0].Error == "" || probes[1].Error != "" || probes[2].Error != "" {
		t.Errorf("%+v", probes)
	}
	if probes[1].Took >= probes[0].Took {
		t.Errorf("it waited for the one that hangs: %s", probes[1].Took)
	}
}

// TestProbes: each way is tried by itself, a few requests in all.
func TestProbes(t *testing.T) { // H5
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: "02:00:00:00:00:01"})
	server := httptest.NewServer(service)
	defer server.Close()
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		w.Write([]byte("<html>"))
	}))
	defer portal.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	paths := []metadata.Path{{Endpoint: server.URL}, {Endpoint: "http://" + closed.Addr().String()}, {Endpoint: portal.URL}, {Socket: "/nonexistent"}}
	probes := probeAll(t.Context(), paths, "", "test")
	if len(probes) != 3 || probes[0].Error != "" || !strings.Contains(probes[1].Error, "refused") || probes[2].Error == "" {
		t.Errorf("%+v", probes)
	}
	if requests := len(service.Requests()); requests == 0 || requests > 6 {
		t.Errorf("%d requests", requests)
	}
}
