package varlinkserver_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/varlinkserver"
	"ec2netd/service/metrics"
)

// H2: io.systemd.Metrics, with the requests of systemd-report.
func TestMetrics(t *testing.T) {
	c := rawDial(t, serve(t, varlinkserver.Options{Agent: apitest.NewAgent(apitest.State())}))
	stream := func(method string) (all []map[string]any) {
		t.Helper()
		c.send(`{"method":"io.systemd.Metrics.` + method + `","more":true}`)
		for {
			var reply struct {
				Parameters map[string]any
				Continues  bool
				Error      string
			}
			if text := c.reply(); json.Unmarshal([]byte(text), &reply) != nil || reply.Error != "" {
				t.Fatalf("%s: %q", method, text)
			}
			all = append(all, reply.Parameters)
			if !reply.Continues {
				return all
			}
		}
	}
	families := make(map[string]string)
	for _, f := range stream("Describe") {
		name, _ := f["name"].(string)
		families[name], _ = f["type"].(string)
		if !strings.HasPrefix(name, metrics.Prefix) || f["description"] == "" || len(f) != 3 {
			t.Errorf("the family %v", f)
		}
	}
	seen := make(map[string]bool)
	list := stream("List")
	for _, m := range list {
		name, _ := m["name"].(string)
		seen[name] = true
		if _, word := m["value"].(string); word != (families[name] == "string") {
			t.Errorf("%v is a %q", m, families[name])
		}
	}
	if len(seen) != len(families) || len(families) != len(metrics.Families()) {
		t.Errorf("%d names of %d families", len(seen), len(families))
	}
	want := map[string]any{"name": "org.ec2netd.InterfaceState", "value": "configured", "object": "ens5", "fields": map[string]any{"eni": "eni-0a1b2c3d4e5f60001"}}
	found := false
	for _, m := range list {
		found = found || reflect.DeepEqual(m, want)
	}
	if !found {
		t.Errorf("no %v in %v", want, list)
	}
	for _, call := range []struct{ call, want string }{
		{`{"method":"io.systemd.Metrics.List"}`, "org.varlink.service.ExpectedMore"},
		{`{"method":"io.systemd.Metrics.Describe","parameters":{}}`, "org.varlink.service.ExpectedMore"},
		{`{"method":"io.systemd.Metrics.Nothing","more":true}`, "org.varlink.service.MethodNotFound"},
		{`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"` + api.MetricsInterface + `"}}`, "error NoSuchMetric"},
	} {
		c.send(call.call)
		if reply := c.reply(); !strings.Contains(reply, call.want) {
			t.Errorf("%s: %s", call.call, reply)
		}
	}
}
