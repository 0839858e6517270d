package main

import (
	"encoding/json"
	"strings"
	"testing"

	"ec2netd/api/apitest"
	"ec2netd/service/metrics"
)

// TestMetrics: what Prometheus gets of all metrics, word for word.
func TestMetrics(t *testing.T) { // H2, H5
	socket := serve(t, t.TempDir(), apitest.NewAgent(apitest.State()), nil)
	out, errs, code := invoke(socket, false, 1000, "metrics")
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	golden(t, out)
	for _, f := range metrics.Families() {
		if !strings.Contains(out, " "+f.Description+"\n") {
			t.Errorf("there is no %s", f.Name)
		}
	}
	out, errs, code = invoke(socket, false, 1000, "metrics", "--json=short")
	var all []metrics.Metric
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 || len(all) < len(metrics.Families()) {
		t.Errorf("exit code %d, %v, %s\n%s", code, err, errs, out)
	}
	if _, errs, code := invoke(socket+"x", false, 1000, "metrics"); code != 1 || !strings.Contains(errs, "ec2netd is not there") {
		t.Errorf("without a daemon: exit code %d, %s", code, errs)
	}
}

// TestExposition: whatever is in a label, it is one line.
func TestExposition(t *testing.T) {
	got := exposition([]metrics.Family{{Name: metrics.Prefix + "InterfaceState", Description: "a\nb", Type: metrics.String}},
		[]metrics.Metric{{Name: metrics.Prefix + "InterfaceState", Value: "x\"y\\z\n", Object: "ens5"}})
	const want = "# HELP ec2netd_interface_state a\\nb\n# TYPE ec2netd_interface_state gauge\n" +
		`ec2netd_interface_state{interface="ens5",state="x\"y\\z\n"} 1` + "\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
