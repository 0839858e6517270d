package orphan

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ec2netd/service/persist"
	"ec2netd/service/plan"
)

// FuzzRecord: a record is refused, or survives being written again; each rule of it can be
// given to the kernel (D4).
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"rules":[{"from":"10.0.1.20/32","table":10001,"priority":10001},{"from":"2001:db8::/80","table":254,"priority":10000,"guard":true}]}`))
	f.Add([]byte(`{"rules":[{"from":"::/0","table":10001,"priority":9998,"mark":{"value":2,"mask":255}}]}`))
	f.Add([]byte(`{"rules":[{"from":"","table":-1}]}`))
	f.Add([]byte(`{"rules":[{"from":"10.0.1.20/24","table":1e3}]}`))
	f.Add([]byte(`{"rules":`))
	f.Fuzz(func(t *testing.T, text []byte) {
		record := NewRecord(persist.Place{Path: filepath.Join(t.TempDir(), "rules.json")})
		if err := os.WriteFile(record.Path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		rules, err := record.Read()
		if err != nil {
			if len(rules) > 0 {
				t.Errorf("refused, with %v", rules)
			}
			return
		}
		if err := record.Write(rules); err != nil {
			t.Fatal(err)
		}
		again, err := record.Read()
		slices.SortFunc(rules, plan.Rule.Compare)
		slices.SortFunc(again, plan.Rule.Compare)
		if err != nil || !slices.Equal(again, rules) {
			t.Errorf("%v became %v: %v", rules, again, err)
		}
		for _, rule := range rules {
			if n := network(rule.From); n.Mask == nil || len(n.IP) != len(n.Mask) {
				t.Errorf("%v becomes %v", rule, n)
			}
		}
	})
}
