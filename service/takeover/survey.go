package takeover

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	systemdunit "github.com/coreos/go-systemd/v22/unit"

	"ec2netd/service/conflict"
	"ec2netd/service/file"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/status"
	"ec2netd/service/systemd"
)

// presetFile names the units that decide who owns the links.
const presetFile = "usr/lib/systemd/system-preset/80-ec2netd.preset"

// RefusedError says why a takeover would not end well, so that none is begun.
type RefusedError struct {
	Err error
	// Advice is what to do first.
	Advice string
}

// Error implements error.
func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *RefusedError) Unwrap() error { return e.Err }

func refused(advice, format string, args ...any) error {
	return &RefusedError{Err: fmt.Errorf(format, args...), Advice: advice}
}

// PresetUnits returns the units that the preset file of ec2netd below root names, see
// systemd.preset(5). It fails with a [RefusedError] if there is no such file.
func PresetUnits(root string) ([]string, error) {
	text, err := file.Read(filepath.Join("/", root, presetFile), file.Limit)
	if err != nil {
		return nil, refused("Is ec2netd installed as a package, or with make install PREFIX=/usr?", "reading which units are concerned: %w", err)
	}
	var units []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && (f[0] == "enable" || f[0] == "disable") {
			units = append(units, f[1])
		}
	}
	return units, nil
}

// NetworkFiles reads the unit files of networkd; [unitfile.Tree] implements it.
type NetworkFiles interface {
	// Base returns the path of the base unit that is in force.
	Base() (unit string, dropIns []string)
	// Read returns the content of a unit file, empty if there is none.
	Read(path string) string
}

// Networkd is networkd as far as its files tell of it; [networkd.Client] implements it.
type Networkd interface {
	// Link returns what networkd says of the link with an index.
	Link(index int) networkd.LinkState
	// Varlink reports whether networkd has its Varlink socket, as from 257 on.
	Varlink() bool
}

// Survey looks at a running system to plan a takeover of it. It changes nothing.
type Survey struct {
	// Root is put before every path; empty for the system.
	Root string
	// Units are those that the preset file names, and Links those of ENIs.
	Units []string
	Links []kernel.Link

	NetworkFiles NetworkFiles
	Networkd     Networkd
	// Systemctl runs systemctl(1), see [System].
	Systemctl func(ctx context.Context, args ...string) (string, error)
}

// Plan returns what has to be done, and the links that it is about. It fails with a [RefusedError] if
// the ENIs would not be configured afterwards, or if nobody could find out whether they are.
func (s *Survey) Plan(ctx context.Context) (p *Plan, links []string, err error) {
	if err := s.checkBase(); err != nil {
		return nil, nil, err
	}
	files := systemd.UnitFiles{Root: s.Root}
	if files.AnyMasked(systemd.Socket) {
		return nil, nil, refused("To have it enabled as the presets say: "+files.EnableCommand(systemd.Socket),
			"%s is masked, so that nobody could ask ec2netd whether the ENIs are configured", systemd.Socket)
	}
	facts := s.facts(ctx)
	p, err = Make(facts)
	var not *NotEnabledError
	if errors.As(err, &not) {
		return nil, nil, &RefusedError{Err: err, Advice: asPresetsSay(files, not)}
	}
	if err != nil {
		return nil, nil, err
	}
	p.Remove, p.LeaveAlone, err = FindOld(s.Root)
	if err != nil {
		return nil, nil, err
	}
	// As in JSON: a list, and not null.
	p.Remove, p.LeaveAlone, p.Flush = append([]string{}, p.Remove...), append([]string{}, p.LeaveAlone...), append([]string{}, p.Flush...)
	return p, facts.Links, nil
}

// checkBase refuses a takeover where networkd has no unit for ENIs.
func (s *Survey) checkBase() error {
	base, _ := s.NetworkFiles.Base()
	switch {
	case s.NetworkFiles.Read(base) != "":
		return nil
	case strings.HasPrefix(base, "/usr/lib/"):
		return refused("To have it again "+status.InstallAgain+".", "%s is missing, so that networkd has no unit for ENIs", base)
	default:
		return refused("To have that of ec2netd in force: rm "+base, "%s is empty, so that networkd has no unit for ENIs", base)
	}
}

// facts collects what [Make] decides from.
func (s *Survey) facts(ctx context.Context) Facts {
	is := func(what string) func(string) bool {
		return func(unit string) bool {
			_, err := s.Systemctl(ctx, what, "--quiet", unit)
			return err == nil
		}
	}
	f := Facts{Units: s.Units, Enabled: is("is-enabled"), Active: is("is-active"), Before257: !s.Networkd.Varlink()}
	enis := make([]conflict.Link, 0, len(s.Links))
	for i := range s.Links {
		l := &s.Links[i]
		enis = append(enis, conflict.Link{Index: l.Index, Name: l.Name, MAC: l.MAC})
		said := s.Networkd.Link(l.Index)
		leftAlone := said.Administrative == "unmanaged" && said.File != "" // Unmanaged=yes
		if !l.Down && !leftAlone {
			f.Links = append(f.Links, l.Name)
			f.Hotplugged = append(f.Hotplugged, "ifup@"+systemdunit.UnitNameEscape(l.Name)+".service")
		}
	}
	looker := &conflict.Looker{Root: s.Root}
	f.Ifupdown, f.Raised = len(looker.Ifupdown(enis)) > 0, looker.RaisedOthers(enis)
	return f
}

// asPresetsSay is the advice about a unit that is not enabled or disabled as the presets have it. The
// advice is not systemctl preset, which has no effect on a unit that is masked, or that one of the
// administrator's presets has as it is.
func asPresetsSay(files systemd.UnitFiles, not *NotEnabledError) string {
	if not.Enabled {
		return "To have it disabled as the presets say: systemctl disable " + not.Unit
	}
	units := []string{not.Unit}
	if not.Unit == systemd.Daemon {
		units = []string{systemd.Socket, systemd.Daemon}
	}
	return "To have it enabled as the presets say: " + files.EnableCommand(units...)
}
