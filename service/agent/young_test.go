package agent

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// young is a site to which an ENI is attached as EC2 tells it: the link first, then what p says.
// It returns how long after the attachment it was configured with everything.
func (s *site) young(t *testing.T, a *Agent, n int, p imds.Propagation, change func(*imds.Interface)) time.Duration {
	t.Helper()
	name, spec := "ens"+string(rune('5'+n)), specOf(n, 0, n)
	if change != nil {
		change(&spec)
	}
	s.set(func() { s.specs[name] = spec })
	s.server.ResetRequests()
	began := time.Now()
	s.plug(name)
	s.publish(name, spec, p)
	want := len(spec.IPv4) + len(spec.IPv6) + len(spec.IPv4Prefixes) + len(spec.IPv6Prefixes)
	for {
		if i, ok := a.State().Find(spec.MAC); ok && i.State == state.ENIConfigured && len(i.Addresses)+len(i.Prefixes) == want {
			return time.Since(began)
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%s is not configured: %+v", name, a.State())
		}
		settle(time.Millisecond)
	}
}

// read is how often a key of an ENI was read.
func (s *site) read(n int, key string) int {
	return imds.Count(s.server.Requests()).ByKey[strings.TrimSuffix("network/interfaces/macs/"+macOf(n)+"/"+key, "/")]
}

// D11, D8: what EC2 tells late of an ENI that was attached is in use within 0.3 s. Meanwhile no
// more is read than what is waited for, and what does not change is read once.
func TestLateKeys(t *testing.T) {
	t.Parallel()
	const within = 300 * time.Millisecond
	number := func(d time.Duration) map[string]time.Duration {
		return map[string]time.Duration{"device-number": d, "network-card": d}
	}
	for _, late := range []time.Duration{0, 50 * time.Millisecond, 330 * time.Millisecond, 1500 * time.Millisecond, 7 * time.Second, 10 * time.Second} {
		looks := int(late/(180*time.Millisecond)) + 4 // at most
		for name, test := range map[string]struct {
			p      imds.Propagation
			change func(*imds.Interface)
			// most is how often a key may be read.
			most map[string]int
		}{
			"listed": {p: imds.Propagation{Listed: late}, most: map[string]int{"": looks, "device-number": 1, "local-ipv4s": 2}},
			"number": {
				p:      imds.Propagation{Keys: map[string]time.Duration{"device-number": late}},
				change: func(i *imds.Interface) { i.NetworkCard = nil },
				most:   map[string]int{"device-number": looks, "": 3, "local-ipv4s": 3},
			},
			"number and card": {p: imds.Propagation{Keys: number(late)}, most: map[string]int{"device-number": looks, "": looks + 2, "local-ipv4s": 3}},
			"secondaries": {
				p:    imds.Propagation{Secondaries: late},
				most: map[string]int{"": looks + 1, "local-ipv4s": looks + 1, "ipv6s": looks + 1, "device-number": 1, "ipv4-prefix": 1},
			},
		} {
			if name == "secondaries" && late == 10*time.Second {
				continue // that is too late for them
			}
			t.Run(name+" "+late.String(), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := newSite(t, imds.Options{})
					s.add(0, func(i *imds.Interface) {
						if name == "number" {
							i.NetworkCard = nil
						}
					})
					a, stop := s.run()
					defer stop()
					settle(3 * time.Minute)
					if took := s.young(t, a, 1, test.p, test.change); took > late+within {
						t.Errorf("in use after %v, %v after the metadata told it", took, took-late)
					}
					for _, key := range []string{"interface-id", "subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks"} {
						if n := s.read(1, key); n != 1 {
							t.Errorf("%s was read %d times", key, n)
						}
					}
					for key, most := range test.most {
						if n := s.read(1, key); n > most {
							t.Errorf("%q was read %d times, want at most %d", key, n, most)
						}
					}
					// In the end it costs what any ENI does.
					settle(40 * time.Second)
					s.server.ResetRequests()
					settle(10 * time.Minute)
					if n := imds.Count(s.server.Requests()); n.Total > 2*8*10*63/60+n.Tokens {
						t.Errorf("%d requests in ten minutes", n.Total)
					}
				})
			})
		}
	}
}

// B5, D11: two ENIs that have one number are looked at until they have two.
func TestNumberOfAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := inTurns(t, 2, nil)
		const late = 5 * time.Second
		other := specOf(2, 0, 1) // that of the ENI before
		s.set(func() { s.specs["ens7"] = specOf(2, 0, 2) })
		s.server.PutInterface(other, imds.Propagation{})
		s.plug("ens7")
		settle(late)
		must(t, a, "ens7", state.ENIPending)
		other.DeviceNumber = 2
		s.server.PutInterface(other, imds.Propagation{})
		settle(300 * time.Millisecond)
		must(t, a, "ens7", state.ENIConfigured)
	})
}

// An ENI that is listed, and whose number is late, is left alone by networkd until the number is
// there, so that it is configured once; but not for longer than 12 s, nor one that is not listed.
func TestHoldWhileListed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		p imds.Propagation
		// held at least, and at most.
		from, to time.Duration
	}{
		"not listed":   {imds.Propagation{Listed: imds.Held}, holdTime, holdTime + time.Second},
		"some keys":    {imds.Propagation{Keys: map[string]time.Duration{"local-ipv4s": imds.Held}}, listedHoldTime, listedHoldTime + time.Second},
		"no number":    {imds.Propagation{Keys: map[string]time.Duration{"device-number": imds.Held}}, listedHoldTime, listedHoldTime + time.Second},
		"late number":  {imds.Propagation{Keys: map[string]time.Duration{"device-number": 10 * time.Second}}, time.Minute, 0},
		"all is there": {imds.Propagation{}, time.Minute, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, imds.Options{})
				s.holding = []string{"ena"}
				s.add(0, nil)
				a, stop := s.run()
				defer stop()
				settle(time.Minute)
				must(t, a, macOf(0), state.ENIConfigured)
				spec := specOf(1, 0, 1)
				spec.NetworkCard = new(int)
				s.set(func() { s.specs["ens6"] = spec })
				held := func() bool { return s.store.Read(plan.HoldPath) != "" }
				if !held() {
					t.Fatal("new ENIs are not held")
				}
				s.plug("ens6")
				s.publish("ens6", spec, test.p)
				settle(test.from - 100*time.Millisecond)
				if !held() {
					t.Errorf("no ENI is held after %v", test.from)
				}
				if test.to > 0 {
					settle(test.to - test.from + 100*time.Millisecond)
					if held() {
						t.Errorf("ENIs are held after %v", test.to)
					}
				}
			})
		})
	}
}

// A11: DHCPv6 brings an address before the metadata has been read again, and the kernel prefers
// it: it is in the files, deprecated, as soon as the metadata tell it.
func TestLeasedAddress(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := inTurns(t, 1, func(i *imds.Interface) { i.IPv6 = i.IPv6[:1] })
			settle(3 * time.Second)
			address := specOf(0, 0, 0).IPv6[1]
			s.set(func() {
				s.links[0].Addresses = append(s.links[0].Addresses, kernel.Address{Prefix: netip.PrefixFrom(address, 128), Global: true, Dynamic: true})
			})
			s.ring()
			settle(late)
			s.amend(0, func(*imds.Interface) {})
			began := time.Now()
			const soon = 4 * time.Second
			for !strings.Contains(s.store.Read(plan.NetworkDropIn("ens5")), "Address="+address.String()+"/128\n") {
				settle(50 * time.Millisecond)
				if took := time.Since(began); took > soon {
					t.Fatalf("not in the files %v after the metadata told it, %v after the lease", took, took+late)
				}
			}
			if content := s.store.Read(plan.NetworkDropIn("ens5")); !strings.Contains(content, "PreferredLifetime=0\n") {
				t.Errorf("not deprecated:\n%s", content)
			}
		})
	}
}
