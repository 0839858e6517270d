package main

import (
	"context"

	"ec2netd/service/doctor"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
)

// doctor says what keeps ec2netd from its work, and what to do. It fails where there is a problem.
func (c *ctl) doctor(ctx context.Context) error {
	stop := c.progress("Looking around")
	findings, err := c.diagnose(ctx)
	stop()
	if err != nil {
		return err
	}
	problems := 0
	for _, f := range findings {
		if f.Level == doctor.Problem {
			problems++
		}
	}
	if c.wantsJSON() {
		err = c.printJSON(struct {
			Problems int              `json:"problems"`
			Findings []doctor.Finding `json:"findings"`
		}{problems, findings})
	} else {
		err = c.page(c.describeFindings(findings))
	}
	if err == nil && problems > 0 {
		err = errSilent
	}
	return err
}

// diagnose asks ec2netd for its state, and examines this machine.
func (c *ctl) diagnose(ctx context.Context) ([]doctor.Finding, error) {
	s, err := c.look()
	if err != nil {
		return nil, err
	}
	system := &networkd.Client{Root: c.root}
	defer system.Close()
	examiner := &doctor.Examiner{
		Root: c.root, Config: s.config, Kernel: s.seen.Kernel, NotEC2: s.notEC2, Elsewhere: c.elsewhere(),
		System: system, NetworkFiles: s.seen.Files, NextHops: kernel.NextHops, UserAgent: userAgent(),
	}
	if c.uid == 0 {
		examiner.Ways = s.paths
	}
	if _, examiner.Daemon.State, err = c.describe(ctx); err != nil {
		examiner.Daemon.Silence = err.Error()
		if a, ok := asAdvice(err); ok {
			examiner.Daemon.Remedy = a.hint
		}
	}
	facts, err := examiner.Examine(ctx)
	if err != nil {
		return nil, err
	}
	return doctor.Diagnose(facts), nil
}

// describeFindings are findings in words.
func (c *ctl) describeFindings(findings []doctor.Finding) string {
	rows := make([][]cell, 0, len(findings))
	counts := make(map[doctor.Level]uint64)
	for _, f := range findings {
		counts[f.Level]++
		colour := map[doctor.Level]colour{doctor.OK: green, doctor.Warning: yellow, doctor.Problem: red}[f.Level]
		said := []string{f.Text}
		if f.Advice != "" {
			said = append(said, "→ "+f.Advice)
		}
		rows = append(rows, []cell{text(string(f.Level)).in(colour), text(string(f.Check)), lines(said)})
	}
	end := "Nothing to do."
	if counts[doctor.Problem]+counts[doctor.Warning] > 0 {
		end = count(counts[doctor.Problem], "problem") + ", " + count(counts[doctor.Warning], "warning") + "."
		if c.uid != 0 {
			end += "\nCommands that change something are for root."
		}
	}
	return table(rows, c.width, c.colour) + "\n" + end + "\n"
}
