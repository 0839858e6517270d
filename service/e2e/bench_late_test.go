package e2e

import (
	"fmt"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// tellAtOnce has the VPC tell everything of an ENI before its link is there, and its router answer at
// once: what is left is what the daemon takes.
func tellAtOnce(l *labtest.Lab, latency time.Duration) {
	l.T.Helper()
	behaviour := vpc.EC2()
	behaviour.Propagation, behaviour.RADelay = vpc.Propagation{}, vpc.Range{}
	behaviour.Metadata = imds.Pace{Latency: latency, Jitter: latency / 10}
	if err := l.VPC.SetBehaviour(behaviour); err != nil {
		l.T.Fatal(err)
	}
}

// late is what the metadata service costs an attachment: with its latency, and where it tells
// keys late (D10, D11).
func late(b *testing.B, r *report, suite string) {
	const times = 3
	l := labtest.Boot(b, suite, nil)
	l.AwaitConfigured("ens5")
	tellAtOnce(l, 0)
	eni := l.Attach(labtest.HotplugSpec())
	p := newPlugging(l, b, []*vpc.ENI{eni}, 0)
	again := func() {
		p.detachAll()
		p.forgetful()
	}
	for _, latency := range []time.Duration{0, 2 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond} {
		tellAtOnce(l, latency)
		var daemon, oracle []float64
		for range times {
			again()
			daemon = append(daemon, ms(p.byDaemon()))
			p.detachAll()
			limit, _ := p.byOracle()
			oracle = append(oracle, ms(limit))
			p.attachAll()
			l.AwaitConfigured(eni.ID())
		}
		name := fmt.Sprintf("latency-%d", latency.Milliseconds())
		plugged := figure{Name: name, What: fmt.Sprintf("one ENI plugged in, with a metadata latency of %v", latency), Unit: "ms"}
		if latency < 50*time.Millisecond {
			// From one time to the next it varies by tens of milliseconds, which is more than three
			// round trips: what holds is what does for any ENI that is plugged in.
			plugged.Most, plugged.MostRatio = most(300), most(2)
		}
		r.compare(suite, plugged, daemon, oracle)
		if latency >= 50*time.Millisecond {
			r.set(suite, figure{Name: name + "-trips", What: "  what it takes more than the oracle, in round trips", Unit: "round trips", Most: most(3)},
				max(0, median(daemon)-median(oracle))/ms(latency))
		}
	}
	tellAtOnce(l, 2*time.Millisecond)
	for _, test := range []struct {
		what string
		p    imds.Propagation
	}{
		{"device number after 1.5 s", imds.Propagation{Keys: map[string]time.Duration{"device-number": 1500 * time.Millisecond}}},
		{"device number after 7 s", imds.Propagation{Keys: map[string]time.Duration{"device-number": 7 * time.Second}}},
		{"secondaries after 1 s", imds.Propagation{Secondaries: time.Second}},
	} {
		var after []float64
		for range times {
			again()
			eni.SetPropagation(&test.p)
			p.attachAll()
			p.applied()
			there := time.Now()
			told, _ := l.Inst.Metadata().Complete(eni.MAC().String())
			after = append(after, ms(there.Sub(told)))
			l.AwaitConfigured(eni.ID())
		}
		r.set(suite, figure{Name: "late " + test.what, What: test.what + ": from the last key listed until all is there", Unit: "ms", Most: most(300)}, median(after))
	}
}
