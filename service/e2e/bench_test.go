package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// BenchmarkLab measures what ec2netd costs, on each systemd, and prints one table. With
// EC2NETD_BENCH=FILE the same figures are written there as JSON. "make bench" runs it; a part
// alone is go test -bench 'BenchmarkLab/Hotplug/trixie'.
//
// The oracle is networkd's own limit: the same files written at once by hand, and one
// reload, timed until the kernel has everything. It runs in turn with the daemon, and the
// ratio is of neighbours in time, since machines are noisy. Figures are medians, but for those
// that are called otherwise. Of a start the oracle is systemd's own time.
func BenchmarkLab(b *testing.B) {
	vpc.RequireForTest(b)
	r := &report{}
	b.Run("Idle", func(b *testing.B) { idle(b, r) })
	b.Run("Assigned", func(b *testing.B) { assigned(b, r) })
	for _, part := range []struct {
		name    string
		measure func(*testing.B, *report, string)
	}{{"Hotplug", hotplugs}, {"Late", late}, {"Many", many}, {"Hitless", costs}} {
		for _, suite := range vpc.Suites {
			b.Run(part.name+"/"+suite.Name, func(b *testing.B) { part.measure(b, r, suite.Name) })
		}
	}
	b.Run("Pass", func(b *testing.B) { growth(b, r) })
	if err := r.print(os.Stdout); err != nil {
		b.Fatal(err)
	}
	if file := os.Getenv("EC2NETD_BENCH"); file != "" {
		if err := r.write(file); err != nil {
			b.Fatal(err)
		}
	}
}

// report is all that was measured, in the order in which it was.
type report struct{ figures []*figure }

// figure is what is measured.
type figure struct {
	// Name is its key in the JSON, What says what it is.
	Name, What, Unit string
	// Most is what it may be at most, and MostRatio the ratio to the oracle; nil for no limit.
	Most, MostRatio *float64
	// Shell are the figures of the shell package amazon-ec2-net-utils 2.7.4, by suite,
	// measured once in this lab.
	Shell map[string]float64
	// measured, by suite; "" is that of all together.
	measured map[string]measured
}

// measured is one value. Oracle is nil where there is none, Ratio where it may be 0.
type measured struct {
	Value         float64
	Oracle, Ratio *float64
}

// most is a limit.
func most(limit float64) *float64 { return &limit }

// set notes what was measured on a suite.
func (r *report) set(suite string, f figure, value float64) { r.note(suite, f, measured{Value: value}) }

// compare notes the medians of what was measured and of the oracle, in rounds. The ratio is
// the median of those of each round.
func (r *report) compare(suite string, f figure, values, oracle []float64) {
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / oracle[i]
	}
	limit, ratio := median(oracle), median(ratios)
	r.note(suite, f, measured{Value: median(values), Oracle: &limit, Ratio: &ratio})
}

func (r *report) note(suite string, f figure, m measured) {
	n := slices.IndexFunc(r.figures, func(known *figure) bool { return known.Name == f.Name })
	if n < 0 {
		f.measured = make(map[string]measured)
		r.figures = append(r.figures, &f)
		n = len(r.figures) - 1
	}
	r.figures[n].measured[suite] = m
}

// holds tells whether a value is within its limits.
func (f *figure) holds(m measured) bool {
	return (f.Most == nil || m.Value <= *f.Most) && (f.MostRatio == nil || m.Ratio == nil || *m.Ratio <= *f.MostRatio)
}

// print writes the table for people.
func (r *report) print(to io.Writer) error {
	out := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprint(out, "\nFIGURE\tUNIT")
	for _, suite := range vpc.Suites {
		fmt.Fprintf(out, "\tSYSTEMD %s", suite.Systemd)
	}
	fmt.Fprint(out, "\tALL\tAT MOST\tSHELL PACKAGE 252, 257\n")
	failed := 0
	for _, f := range r.figures {
		fmt.Fprintf(out, "%s\t%s", f.What, f.Unit)
		for _, suite := range append(slices.Clone(vpc.Suites), vpc.Suite{}) {
			cell := ""
			if m, ok := f.measured[suite.Name]; ok {
				cell = digits(m.Value)
				if m.Oracle != nil {
					cell += " / " + digits(*m.Oracle)
				}
				if m.Ratio != nil {
					cell += fmt.Sprintf(" = %.2f", *m.Ratio)
				}
				if !f.holds(m) {
					cell += " !"
					failed++
				}
			}
			fmt.Fprint(out, "\t", cell)
		}
		var limits, shell []string
		if f.MostRatio != nil {
			limits = append(limits, digits(*f.MostRatio)+" ×")
		}
		if f.Most != nil {
			limits = append(limits, digits(*f.Most))
		}
		for _, suite := range vpc.Suites {
			if value, ok := f.Shell[suite.Name]; ok {
				shell = append(shell, digits(value))
			}
		}
		fmt.Fprintf(out, "\t%s\t%s\n", strings.Join(limits, ", "), strings.Join(shell, ", "))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(to, "\nA / B = C: ec2netd, the oracle in the same run (networkd with the same files by hand), and the ratio. !: above its limit (%d).\n\n", failed)
	return err
}

// digits writes a number with two or three digits that count.
func digits(v float64) string {
	places := 2
	switch {
	case v >= 100 || v == float64(int(v)):
		places = 0
	case v >= 10:
		places = 1
	}
	return strconv.FormatFloat(v, 'f', places, 64)
}

// write writes the figures for programs: one object for each figure and systemd.
func (r *report) write(file string) error {
	type row struct {
		Figure string   `json:"figure"`
		What   string   `json:"what"`
		Unit   string   `json:"unit"`
		Suite  string   `json:"suite,omitempty"`
		System string   `json:"systemd,omitempty"`
		Value  float64  `json:"ec2netd"`
		Oracle *float64 `json:"oracle,omitempty"`
		Ratio  *float64 `json:"ratio,omitempty"`
		Most   *float64 `json:"at_most,omitempty"`
		MostOf *float64 `json:"ratio_at_most,omitempty"`
		Shell  *float64 `json:"shell_package,omitempty"`
		Holds  bool     `json:"holds"`
	}
	rows := []row{}
	for _, f := range r.figures {
		for _, suite := range append(slices.Clone(vpc.Suites), vpc.Suite{}) {
			m, ok := f.measured[suite.Name]
			if !ok {
				continue
			}
			entry := row{
				Figure: f.Name, What: f.What, Unit: f.Unit, Suite: suite.Name, System: suite.Systemd,
				Value: m.Value, Oracle: m.Oracle, Ratio: m.Ratio, Most: f.Most, MostOf: f.MostRatio, Holds: f.holds(m),
			}
			if shell, ok := f.Shell[suite.Name]; ok {
				entry.Shell = &shell
			}
			rows = append(rows, entry)
		}
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	return nil
}

// growth has the benchmark of the pass run, which needs no systemd: what a pass takes and
// allocates must grow with the addresses, not faster.
func growth(b *testing.B, r *report) {
	cmd := exec.CommandContext(b.Context(), "go", "test", "-run", "^$", "-bench", "^BenchmarkPass$", "-benchmem", "ec2netd/service/agent")
	text, err := cmd.Output()
	if err != nil {
		b.Fatalf("%v: %v\n%s", cmd, err, text)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		// BenchmarkPass/addresses=50-2  1000  912345 ns/op  1216 ns/address  64 B/op  2 allocs/op
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "BenchmarkPass/") {
			continue
		}
		_, name, _ := strings.Cut(fields[0], "addresses=")
		name, _, _ = strings.Cut(name, "-")
		for n := 2; n+1 < len(fields); n += 2 {
			value, err := strconv.ParseFloat(fields[n], 64)
			if err != nil {
				b.Fatalf("%q: %v", lines.Text(), err)
			}
			what := "a pass over 15 ENIs of " + name + " addresses with nothing to do"
			switch fields[n+1] {
			case "ns/op":
				r.set("", figure{Name: "pass-" + name, What: what, Unit: "ms"}, value/1e6)
			case "allocs/op":
				r.set("", figure{Name: "pass-allocations-" + name, What: what, Unit: "allocations"}, value)
			}
		}
	}
	if len(r.figures) == 0 || !strings.HasPrefix(r.figures[len(r.figures)-1].Name, "pass-") {
		b.Fatalf("%v printed no figure:\n%s", cmd, text)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
