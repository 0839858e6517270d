package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/platform"
	"ec2netd/service/preview"
	"ec2netd/service/snapshot"
	"ec2netd/service/store"
	"ec2netd/service/udev"
	"ec2netd/service/unitfile/disk"
)

// dumpTime bounds the reading of all metadata: 15 ENIs have some 300 keys, which the
// service answers in a few milliseconds each.
const dumpTime = 60 * time.Second

// site is this machine as ec2netd sees it. It is only looked at.
type site struct {
	config config.Config
	store  *store.Store
	seen   *snapshot.Snapshot
	// reader has read the unit files.
	reader *disk.Reader
	// notEC2 says why ec2netd has nothing to do here; empty where it has.
	notEC2 string
}

// supported is the error where this machine is no EC2 instance: what answers at the address of
// the metadata service there is not EC2's.
func (s *site) supported() error {
	if s.notEC2 == "" {
		return nil
	}
	return advise(strings.ToUpper(platform.Advice[:1])+platform.Advice[1:], "%w", notEC2Error(s.notEC2))
}

// notEC2Error says why this machine is no EC2 instance.
type notEC2Error string

func (e notEC2Error) Error() string { return string(e) }

// look looks at this machine.
func (c *ctl) look() (*site, error) {
	s := &site{config: config.Load("/" + c.root), store: &store.Store{Root: c.root}, reader: &disk.Reader{Root: c.root}}
	observer, err := kernel.NewObserver(s.config.Drivers)
	if err != nil {
		return nil, err
	}
	defer observer.Close()
	if s.config.Platform != config.PlatformAny {
		s.notEC2 = platform.Read("/" + c.root).NotEC2()
	}
	settings := snapshot.Settings{Sections: s.config.ENIs, Drivers: s.config.Drivers}
	if s.seen, err = sources(c.root, observer, s.reader).Take(settings, nil); err != nil {
		return nil, fmt.Errorf("looking at the links: %w", err)
	}
	return s, nil
}

// sources are where what is seen of the system below a root comes from. observed is nil for a system
// that does not run.
func sources(root string, observed snapshot.Kernel, files *disk.Reader) snapshot.Sources {
	return snapshot.Sources{Kernel: observed, Networkd: &networkd.Client{Root: root}, Udev: &udev.Udev{Root: root}, Files: files}
}

// paths are the ways to the metadata service from here, the best first.
func (s *site) paths(primary string) []metadata.Path {
	return metadata.Way{Endpoint: s.config.Endpoint, Imdsd: metadata.ImdsdSocket}.PathsAnywhere(s.seen.Kernel.Links, primary)
}

// preview plans with the files of this machine.
func (s *site) preview() *preview.Site {
	return &preview.Site{Store: s.store, Seen: s.seen}
}

// readDump reads the metadata here and now.
func (c *ctl) readDump(ctx context.Context, s *site) (*metadata.Dump, error) {
	if err := s.supported(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.within(dumpTime))
	defer cancel()
	client := metadata.NewClient(metadata.Options{UserAgent: userAgent(), Ignored: func(what, name string) {
		fmt.Fprintf(c.stderr, "Ignoring %q, a %s that this version does not know.\n", name, what)
	}})
	defer client.CloseIdle()
	stop := c.progress("Reading the instance metadata")
	defer stop()
	d, err := client.ReadDump(ctx, s.paths(""))
	if err != nil {
		return nil, advise("Is this an EC2 instance, and is its metadata service on? See also ec2netctl doctor.", "%w", err)
	}
	return d, nil
}

// dumpMetadata prints the metadata that ec2netd lives on.
func (c *ctl) dumpMetadata(ctx context.Context) error {
	s, err := c.look()
	if err != nil {
		return err
	}
	read, err := c.readDump(ctx, s)
	if err != nil {
		return err
	}
	out := preview.Dump{Version: currentVersion(), Time: c.now().UTC().Truncate(time.Second), Dump: *read, Links: []preview.Link{}}
	for i := range s.seen.Kernel.Links {
		l := &s.seen.Kernel.Links[i]
		out.Links = append(out.Links, preview.Link{Name: l.Name, MAC: l.MAC, Driver: l.Driver, LinkFile: s.preview().LinkFile(l)})
	}
	if !c.wantsJSON() {
		c.json = "pretty" // it has no other form
	}
	return c.printJSON(out)
}

// mostDump bounds the size of a dump that is read: 100 ENIs are a tenth of it.
const mostDump = 16 << 20

// loadDump reads a file that dump-metadata wrote; - is standard input.
func (c *ctl) loadDump(file string) (*preview.Dump, error) {
	in := c.stdin
	if file != "-" {
		// A pipe too, as of a shell's <(…): the user named it.
		open := os.Open //nolint:forbidigo // what is read is bounded below
		if c.who.elevated {
			open = openRegular
		}
		opened, err := open(file)
		if err != nil {
			return nil, fmt.Errorf("opening the metadata dump: %w", err)
		}
		defer opened.Close()
		in = opened
	}
	text, err := io.ReadAll(io.LimitReader(in, mostDump+1))
	if err == nil && len(text) > mostDump {
		err = fmt.Errorf("it is longer than %d bytes", mostDump)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the metadata dump %s: %w", file, err)
	}
	d, err := preview.ParseDump(text)
	if err != nil && c.who.elevated && file != "-" {
		// The error has what is in the file (J4).
		return nil, advise("To see why, run it with your own rights, or give it the file on standard input.", "%s is no metadata dump", file)
	}
	if err != nil {
		return nil, advise("Write one on the instance with: ec2netctl dump-metadata > FILE", "%s is no metadata dump: %w", file, err)
	}
	return d, nil
}
