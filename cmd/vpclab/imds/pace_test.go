package imds_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
)

// latencies serves requests at a pace and returns the duration of each.
func latencies(t *testing.T, pace imds.Pace, seed uint64) []time.Duration {
	t.Helper()
	s := newService(t, imds.Options{})
	paced := imds.NewPaced(s, seed)
	paced.SetPace(pace)
	var took []time.Duration
	for range 50 {
		r := httptest.NewRequest(http.MethodGet, latest+"mac", nil)
		r.Header.Set("X-Aws-Ec2-Metadata-Token", s.token)
		w, begin := httptest.NewRecorder(), time.Now()
		paced.ServeHTTP(w, r)
		took = append(took, time.Since(begin))
		if w.Code != 200 || w.Body.String() != mac {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
	}
	return took
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pace := imds.Pace{Latency: 20 * time.Millisecond, Jitter: 5 * time.Millisecond}
		first := latencies(t, pace, 1)
		different := false
		for n, d := range first {
			if d < 15*time.Millisecond || d > 25*time.Millisecond {
				t.Errorf("request %d took %s", n, d)
			}
			different = different || d != first[0]
		}
		if !different {
			t.Errorf("no jitter: all took %s", first[0])
		}
		for n, d := range latencies(t, pace, 1) {
			if d != first[n] {
				t.Fatalf("request %d took %s, with the same seed before %s", n, d, first[n])
			}
		}
		for _, d := range latencies(t, imds.Pace{}, 1) {
			if d != 0 {
				t.Errorf("at no latency a request took %s", d)
			}
		}
		for _, wrong := range []imds.Pace{{Latency: -1}, {Jitter: 1}, {Latency: 1, Jitter: 2}, {Latency: 2, Jitter: -1}} {
			if wrong.Check() == nil {
				t.Errorf("%+v is accepted", wrong)
			}
		}
	})
}

// TestPaceSplit: a server that writes headers and body separately stalls a kept
// connection, because the client delays its acknowledgements (facts:
// delayed-acknowledgements).
func TestPaceSplit(t *testing.T) {
	s := newService(t, imds.Options{})
	paced := imds.NewPaced(s, 1)
	server := httptest.NewUnstartedServer(paced)
	server.Config.ConnContext = imds.ConnContext
	server.Start()
	defer server.Close()
	read := func() time.Duration {
		begin := time.Now()
		for range 20 {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+latest+"mac", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Aws-Ec2-Metadata-Token", s.token)
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(body) != mac {
				t.Fatalf("%q, %v", body, err)
			}
		}
		return time.Since(begin)
	}
	read() // the kernel acknowledges the first segments of a connection at once
	paced.SetPace(imds.Pace{Split: true})
	stalled := read()
	paced.SetPace(imds.Pace{})
	t.Logf("20 keys on a kept connection: split %s, whole %s", stalled, read())
	// 40 ms each, except for some that the kernel acknowledges quickly; complete
	// answers take no more than a ms each.
	if stalled < 10*40*time.Millisecond {
		t.Errorf("20 split answers took only %s", stalled)
	}
}
