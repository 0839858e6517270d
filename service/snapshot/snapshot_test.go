package snapshot

import (
	"errors"
	"testing"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// system is everything that can be asked.
type system struct {
	kernel  *kernel.Snapshot
	err     error
	handled map[int]string
	asked   int
}

func (s *system) Observe() (*kernel.Snapshot, error) { return s.kernel, s.err }

func (s *system) Link(index int) networkd.LinkState {
	s.asked++
	return networkd.LinkState{Administrative: "configured", File: plan.NetworkPath(s.kernel.Links[index-2].Name)}
}

func (s *system) Keeps() bool { return true }

func (s *system) LinkFile(index int) (string, bool) {
	s.asked++
	file, ok := s.handled[index]
	return file, ok
}

func (s *system) Tree() *unitfile.Tree {
	content := unitfile.NewContent("[Match]\nOriginalName=*\n[Link]\nMTUBytes=1400\n")
	return unitfile.NewTree([]*unitfile.Directory{{Path: "/usr/lib/systemd/network", Files: []*unitfile.File{{
		Path: plan.DefaultPolicy, Kind: unitfile.Regular, Leads: unitfile.Regular, Size: int64(len(content.Text)), Content: content,
	}}}})
}

func links() *kernel.Snapshot {
	return &kernel.Snapshot{
		Links:  []kernel.Link{{Index: 2, Name: "ens5", MAC: "02:00:00:00:01:10"}, {Index: 3, Name: "ens6", MAC: "02:00:00:00:01:11"}},
		Others: map[string]string{"wg0": "wg0"},
	}
}

// A snapshot has what each part of the system says, and whatever follows from it asks nobody.
func TestTake(t *testing.T) {
	on := &system{kernel: links(), handled: map[int]string{2: plan.DefaultPolicy}}
	sources := Sources{Kernel: on, Networkd: on, Udev: on, Files: on}
	settings := Settings{Sections: []config.Section{{}}, Drivers: []string{"ena"}}
	first, err := sources.Take(settings, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.Taken.IsZero() || !first.Keeps || len(first.Settings.Sections) != 1 || len(first.Settings.Drivers) != 1 || first.Others["wg0"] != "wg0" {
		t.Errorf("%+v", first)
	}
	if got := first.Links[3]; got.Networkd.File != plan.NetworkPath("ens6") || got.Handled || got.LinkFile != "" {
		t.Errorf("a link that udevd is not done with: %+v", got)
	}
	asked := on.asked
	done, waits := first.Observed(&first.Kernel.Links[0]), first.Observed(&first.Kernel.Links[1])
	if done.LinkFile != plan.DefaultPolicy || done.Bytes != 1400 || waits.LinkFile != "" || waits.Bytes != 0 {
		t.Errorf("%q with %d, %q with %d", done.LinkFile, done.Bytes, waits.LinkFile, waits.Bytes)
	}
	if on.asked != asked {
		t.Error("somebody was asked later")
	}

	// What the kernel says is the same value until it is another one. Others are not compared.
	on.kernel = links()
	on.kernel.Others = map[string]string{"wg1": "wg1"}
	second, err := sources.Take(settings, first)
	if err != nil || second.Kernel != first.Kernel || second.Others["wg1"] != "wg1" || first.Others["wg0"] != "wg0" {
		t.Errorf("%+v, %v", second, err)
	}
	on.kernel = links()
	on.kernel.Links[1].Down = true
	if third, err := sources.Take(settings, second); err != nil || third.Kernel == first.Kernel || !third.Kernel.Links[1].Down || first.Kernel.Links[1].Down {
		t.Errorf("%+v, %v", third, err)
	}
	on.err = errors.New("no kernel")
	if _, err := sources.Take(settings, second); !errors.Is(err, on.err) {
		t.Error(err)
	}
}

// Other unit files make another snapshot.
func TestWith(t *testing.T) {
	on := &system{kernel: links(), handled: map[int]string{2: plan.DefaultPolicy}}
	first, err := Sources{Kernel: on, Networkd: on, Udev: on, Files: on}.Take(Settings{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	empty := first.With(unitfile.NewTree(nil))
	if got := empty.Observed(&first.Kernel.Links[0]); got.Bytes != 0 {
		t.Errorf("an MTU of %d", got.Bytes)
	}
	if got := first.Observed(&first.Kernel.Links[0]); got.Bytes != 1400 {
		t.Errorf("the first one has changed: an MTU of %d", got.Bytes)
	}
}
