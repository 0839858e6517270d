package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"ec2netd/service/metadata"
)

// remembered is what a restart of the daemon must not lose: with it everything
// stays as it is, whether or not the metadata service answers.
type remembered struct {
	Instance *metadata.Instance `json:"instance"`
	// Views with the index of the link that they were read for: an index is not
	// used twice before the next boot.
	Views []rememberedView `json:"views"`
	// Presumed is the MAC address that was taken for the primary's, or empty.
	Presumed string `json:"presumed,omitempty"`
}

type rememberedView struct {
	Ifindex int          `json:"ifindex"`
	ENI     metadata.ENI `json:"eni"`
}

// load takes up what an earlier run left. A file that cannot be used is none.
func (a *Agent) load() {
	if a.Views == "" {
		return
	}
	sweepHalf(a.Views)
	text, err := os.ReadFile(a.Views)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var kept remembered
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err == nil {
		err = kept.check()
	}
	if err != nil {
		a.Log.Warn("What the last run knew cannot be used; reading the metadata anew", "file", a.Views, "reason", err.Error())
		return
	}
	if kept.Instance != nil {
		a.instance, a.instanceGot = *kept.Instance, true
	}
	a.presumed = kept.Presumed
	for _, v := range kept.Views {
		a.targets[v.ENI.MAC] = &target{mac: v.ENI.MAC, index: v.Ifindex, view: &v.ENI, attempt: attempt{next: time.Now()}}
	}
}

// check refuses what no run of this daemon writes.
func (r *remembered) check() error {
	if r.Instance != nil {
		if _, err := metadata.ParseMAC(r.Instance.PrimaryMAC); err != nil {
			return err
		}
	}
	if r.Presumed != "" {
		if _, err := metadata.ParseMAC(r.Presumed); err != nil {
			return err
		}
	}
	for _, v := range r.Views {
		if err := v.ENI.Check(); err != nil {
			return fmt.Errorf("the view of link %d: %w", v.Ifindex, err)
		}
	}
	return nil
}

// save keeps what is known over a restart of the daemon.
func (a *Agent) save() {
	if a.Views == "" {
		return
	}
	kept := remembered{Views: []rememberedView{}, Presumed: a.presumed}
	if a.instanceGot {
		kept.Instance = &a.instance
	}
	for _, t := range a.targets {
		if t.view != nil {
			kept.Views = append(kept.Views, rememberedView{Ifindex: t.index, ENI: *t.view})
		}
	}
	text, err := json.Marshal(kept)
	if err == nil {
		err = renameio.WriteFile(a.Views, text, 0o600, renameio.WithTempDir(filepath.Dir(a.Views)))
	}
	if err != nil {
		a.say("views", "Cannot keep what is known for a restart", "file", a.Views, "reason", err.Error())
		return
	}
	a.unsay("views")
}
