package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/varlink/go/varlink"

	"ec2netd/api"
	"ec2netd/service/metrics"
)

// metrics prints the numbers of ec2netd in the text format of Prometheus.
func (c *ctl) metrics(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.within(readTimeout))
	defer cancel()
	families, values, err := c.readMetrics(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return noAnswer()
	}
	if err != nil {
		return c.explain(err, api.MetricsInterface+".List")
	}
	if c.wantsJSON() {
		return c.printJSON(values)
	}
	return c.print(exposition(families, values))
}

func (c *ctl) readMetrics(ctx context.Context) (families []metrics.Family, values []metrics.Metric, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close() }() // nothing is lost by it
	if families, err = each[metrics.Family](ctx, conn, "Describe"); err != nil {
		return nil, nil, err
	}
	values, err = each[metrics.Metric](ctx, conn, "List")
	return families, values, err
}

// each returns all replies to a call.
func each[T any](ctx context.Context, conn *varlink.Connection, method string) (all []T, err error) {
	receive, err := conn.Send(ctx, api.MetricsInterface+"."+method, struct{}{}, varlink.More)
	if err != nil {
		return nil, err
	}
	for {
		// As it came: a number keeps its digits.
		var raw json.RawMessage
		flags, err := receive(ctx, &raw)
		if err != nil {
			return nil, err
		}
		var reply T
		decoder := json.NewDecoder(strings.NewReader(string(raw)))
		decoder.UseNumber()
		if err := decoder.Decode(&reply); err != nil {
			return nil, fmt.Errorf("reading the reply of ec2netd: %w", err)
		}
		all = append(all, reply)
		if flags&varlink.Continues == 0 {
			return all, nil
		}
	}
}

// exposition is the text format of Prometheus. A name is that of the Varlink interface as
// Prometheus has names, a counter's with _total. A word, which Prometheus does not know, is
// a label of a 1, named by the last word of the name.
func exposition(families []metrics.Family, values []metrics.Metric) string {
	var out strings.Builder
	for _, family := range families {
		words := words(strings.TrimPrefix(family.Name, metrics.Prefix))
		name, kind := "ec2netd_"+strings.Join(words, "_"), "gauge"
		if family.Type == metrics.Counter {
			name, kind = name+"_total", "counter"
		}
		first := true
		for _, v := range values {
			if v.Name != family.Name {
				continue
			}
			if first {
				fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n", name, escape(family.Description), name, kind)
				first = false
			}
			labels := maps.Clone(v.Fields)
			if labels == nil {
				labels = make(map[string]string)
			}
			if v.Object != "" {
				labels["interface"] = v.Object
			}
			value := fmt.Sprint(v.Value)
			if family.Type == metrics.String {
				labels[words[len(words)-1]], value = value, "1"
			}
			out.WriteString(name)
			for i, label := range slices.Sorted(maps.Keys(labels)) {
				separator := ","
				if i == 0 {
					separator = "{"
				}
				fmt.Fprintf(&out, `%s%s="%s"`, separator, label, strings.ReplaceAll(escape(labels[label]), `"`, `\"`))
			}
			if len(labels) > 0 {
				out.WriteByte('}')
			}
			fmt.Fprintf(&out, " %s\n", value)
		}
	}
	return out.String()
}

// words takes MetadataRequests apart.
func words(name string) (all []string) {
	start := 0
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) {
			all = append(all, strings.ToLower(name[start:i]))
			start = i
		}
	}
	return append(all, strings.ToLower(name[start:]))
}

// escape does so as the format asks for.
func escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(text)
}
