package agent

import (
	"encoding/json"
	"testing"
)

// FuzzHint: what the last boot left is refused, or survives being
// written again, and is then not refused either (D4).
func FuzzHint(f *testing.F) {
	const eni = `{"mac":"02:00:00:00:01:10","id":"eni-0123456789abcdef0","deviceIndex":0,"ipv4":["10.0.1.10"]}`
	f.Add([]byte(`{"instance":{"id":"i-0123456789abcdef0","primaryMac":"02:00:00:00:01:10"},"views":[{"ifindex":2,"eni":` + eni + `}],"presumed":"02:00:00:00:01:10"}`))
	f.Add([]byte(`{"instance":{"id":"i-0123456789abcdef0","primaryMac":"02:00:00:00:01:10"},"staticIPv6":true,"enis":[{"eni":` + eni + `,"routers":["fe80::1"]}]}`))
	f.Add([]byte(`{"instance":{"primaryMac":"02:00:00:00:01:10"},"enis":[{"eni":{},"routers":["fe80::1%2"]}]}`))
	f.Add([]byte(`{"presumed":"\n[Match]"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		kept, again := new(lastBoot), new(lastBoot)
		if json.Unmarshal(text, kept) != nil || kept.check() != nil {
			return
		}
		once, err := json.Marshal(kept)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(once, again); err != nil {
			t.Fatal(err)
		}
		if err := again.check(); err != nil {
			t.Errorf("%s became %s, which is refused: %v", text, once, err)
		}
		if twice, err := json.Marshal(again); err != nil || string(once) != string(twice) {
			t.Errorf("%s became %s: %v", once, twice, err)
		}
	})
}
