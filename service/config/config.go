// Package config reads ec2netd.conf(5): the main file and its drop-ins, in the
// format of networkd.conf.
//
// It parses and checks, and never fails as a whole. A line with a mistake becomes a
// [Problem] with file, line and key; its key keeps the default, and everything else
// applies.
package config

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"ec2netd/service/file"
)

// Defaults, as documented in ec2netd.conf(5).
const (
	DefaultRefresh = 60 * time.Second
	minRefresh     = time.Second
	maxRefresh     = 24 * time.Hour
)

// Limits of the files: they bound the work and the memory (J2).
const (
	mostBytes    = 128 << 10
	mostDropIns  = 256
	mostProblems = 50
	mostSections = 1000
	mostDrivers  = 64
)

// DefaultDrivers are the drivers of ENIs: Nitro, Xen with enhanced networking, and Xen
// without.
func DefaultDrivers() []string { return []string{"ena", "ixgbevf", "vif"} }

// Platform says where the daemon works.
type Platform string

// The platforms.
const (
	// PlatformEC2: only on EC2 instances.
	PlatformEC2 Platform = "ec2"
	// PlatformAny: everywhere, such as in tests and on compatible clouds.
	PlatformAny Platform = "any"
)

// Config is the effective configuration.
type Config struct {
	// Drivers are the drivers whose links are ENIs, as ethtool reports them. [Match]
	// Driver=
	Drivers []string
	// Platform on which the daemon works. [Match] Platform=
	Platform Platform
	// Endpoint is the base URL of the metadata service in place of the two well-known
	// ones, or empty. [Metadata] Endpoint=
	Endpoint string
	// Refresh is the longest time between two looks at the metadata.
	// [Metadata] RefreshSec=
	Refresh time.Duration
	// ENIs are the [ENI] sections in the order of reading. [Config.For] applies them.
	ENIs []Section
	// Files that were read, in order.
	Files []string
	// Problems in them, in order.
	Problems []Problem
}

// Problem is a line with a mistake. The configuration applies without it.
type Problem struct {
	File string
	Line int
	// Key is "Section.Key", or "Section", or empty if the line has none.
	Key string
	// Message says what is wrong and which value is used instead.
	Message string
}

// String returns the place and the message in the form that compilers use.
func (p Problem) String() string {
	where := fmt.Sprintf("%s:%d: ", p.File, p.Line)
	if p.Line == 0 {
		where = p.File + ": "
	}
	if p.Key != "" {
		where += p.Key + ": "
	}
	return where + p.Message
}

// Load reads etc/ec2netd.conf and then the drop-ins ec2netd.conf.d/*.conf of usr/lib,
// run and etc below root ("/" for the system), in the order of their names. If several
// directories have a drop-in of the same name, etc takes precedence over run, and run
// over usr/lib, as in systemd. A symlink to /dev/null masks the others.
func Load(root string) Config {
	c := Config{Drivers: DefaultDrivers(), Platform: PlatformEC2, Refresh: DefaultRefresh}
	main := filepath.Join(root, "etc/ec2netd.conf")
	if _, err := os.Lstat(main); err == nil {
		c.read(main)
	}
	for _, path := range c.dropIns(root) {
		c.read(path)
	}
	return c
}

func (c *Config) dropIns(root string) []string {
	byName := make(map[string]string)
	for _, dir := range []string{"usr/lib", "run", "etc"} {
		// A directory with more files than anybody needs is cut short.
		dir = filepath.Join(root, dir, "ec2netd.conf.d")
		found, err := file.List(dir, "*.conf")
		if err != nil {
			c.Problems = append(c.Problems, Problem{File: dir, Message: fmt.Sprintf("not all of it is read: %v", file.Cause(err))})
		}
		for _, name := range found {
			byName[name] = filepath.Join(dir, name)
		}
	}
	names := make([]string, 0, len(byName))
	for name, path := range byName {
		if target, err := os.Readlink(path); err == nil && target == os.DevNull {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) > mostDropIns {
		c.Problems = append(c.Problems, Problem{File: byName[names[mostDropIns]], Message: fmt.Sprintf("it and those after it are ignored: %d drop-ins are the most", mostDropIns)})
		names = names[:mostDropIns]
	}
	paths := make([]string, 0, len(names))
	for _, name := range names {
		paths = append(paths, byName[name])
	}
	return paths
}

func (c *Config) read(path string) {
	text, err := file.Read(path, mostBytes)
	if err != nil {
		c.Problems = append(c.Problems, Problem{File: path, Message: fmt.Sprintf("cannot be read and is ignored: %v", file.Cause(err))})
		return
	}
	c.Files = append(c.Files, path)
	before := len(c.Problems)
	c.parse(path, text)
	if more := len(c.Problems) - before - mostProblems; more > 0 {
		c.Problems = append(c.Problems[:before+mostProblems:before+mostProblems], Problem{File: path, Message: fmt.Sprintf("there are %d more mistakes", more)})
	}
}

func (c *Config) parse(path, text string) {
	section := ""
	known := false
	// eni is the current [ENI] section; nil in other sections, and after it has become
	// void.
	var eni *Section
	finish := func() {
		switch {
		case eni == nil:
		case len(c.ENIs) == mostSections:
			c.Problems = append(c.Problems, Problem{File: path, Line: eni.Line, Key: eniSection,
				Message: fmt.Sprintf("it is ignored: %d sections [%s] are the most", mostSections, eniSection)})
		default:
			c.ENIs = append(c.ENIs, *eni)
		}
		eni = nil
	}
	defer func() { finish() }()
	number, pending, start := 0, "", 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimSpace(line)
		// Comments between continued lines are dropped, as in unit files.
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}
		if pending == "" {
			start = number
		}
		if before, ok := strings.CutSuffix(line, `\`); ok {
			pending += before + " "
			continue
		}
		trimmed = strings.TrimSpace(pending + line)
		pending = ""
		problem := func(key, format string, args ...any) {
			c.Problems = append(c.Problems, Problem{File: path, Line: start, Key: key, Message: fmt.Sprintf(format, args...)})
		}
		switch {
		case trimmed == "":
		case strings.HasPrefix(trimmed, "["):
			finish()
			name, ok := strings.CutSuffix(trimmed[1:], "]")
			if !ok || name == "" {
				section, known = "", false
				problem("", "%q is not a section header; what follows is ignored up to the next one", trimmed)
				continue
			}
			section, known = name, sections[name] != nil
			if name == eniSection {
				known, eni = true, &Section{File: path, Line: start}
			}
			if !known && !strings.HasPrefix(name, "X-") {
				problem(name, "there is no such section; it is ignored. There are: %s", strings.Join(sectionNames(), ", "))
			}
		default:
			key, value, ok := strings.Cut(trimmed, "=")
			if !ok && eni != nil {
				problem(section, "%q is not Key=Value; the whole section is ignored, since the line may have said which ENIs it is for", trimmed)
				eni = nil
				continue
			}
			if !ok {
				problem(section, "%q is not Key=Value; the line is ignored", trimmed)
				continue
			}
			if section == "" {
				problem("", "%s= stands before any section header and is ignored", strings.TrimSpace(key))
				continue
			}
			if !known {
				continue
			}
			key, value = strings.TrimSpace(key), strings.TrimSpace(value)
			if section == eniSection {
				if eni == nil || strings.HasPrefix(key, "X-") {
					continue
				}
				void, err := setENI(eni, key, value)
				if err != nil {
					problem(section+"."+key, "%v", err)
				}
				if void {
					eni = nil
				}
				continue
			}
			set := sections[section][key]
			if set == nil {
				if !strings.HasPrefix(key, "X-") {
					problem(section+"."+key, "there is no such key in [%s]; it is ignored", section)
				}
				continue
			}
			if err := set(c, value); err != nil {
				problem(section+"."+key, "%v", err)
			}
		}
	}
	if pending != "" {
		eni = nil
		c.Problems = append(c.Problems, Problem{File: path, Line: start, Key: section, Message: "the file ends in a continued line, which is ignored"})
	}
}

// sections is the table of keys. A setter gets the trimmed value; its error says which
// value is used instead.
var sections = map[string]map[string]func(*Config, string) error{
	"Match": {
		"Driver":   setDriver,
		"Platform": setPlatform,
	},
	"Metadata": {
		"Endpoint":   setEndpoint,
		"RefreshSec": setRefresh,
	},
}

// eniSection is the only section that can be used several times.
const eniSection = "ENI"

func sectionNames() []string {
	names := []string{"[" + eniSection + "]"}
	for name := range sections {
		names = append(names, "["+name+"]")
	}
	slices.Sort(names)
	return names
}

var driverName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,31}$`)

func setDriver(c *Config, value string) error {
	if value == "" {
		c.Drivers = nil
		return nil
	}
	if n := len(c.Drivers) + len(strings.Fields(value)); n > mostDrivers {
		return fmt.Errorf("%d drivers are too many: %d are the most; the line is ignored", n, mostDrivers)
	}
	for driver := range strings.FieldsSeq(value) {
		if !driverName.MatchString(driver) {
			return fmt.Errorf("%q is not the name of a driver; the line is ignored", driver)
		}
	}
	for driver := range strings.FieldsSeq(value) {
		if !slices.Contains(c.Drivers, driver) {
			c.Drivers = append(c.Drivers, driver)
		}
	}
	return nil
}

func setPlatform(c *Config, value string) error {
	c.Platform = PlatformEC2
	switch platform := Platform(value); platform {
	case PlatformEC2, PlatformAny:
		c.Platform = platform
	case "":
	default:
		return fmt.Errorf("%q is neither %s nor %s; %s is used", value, PlatformEC2, PlatformAny, PlatformEC2)
	}
	return nil
}

func setEndpoint(c *Config, value string) error {
	c.Endpoint = ""
	if value == "" {
		return nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not a base URL like http://169.254.169.254; the well-known endpoints are used", value)
	}
	c.Endpoint = strings.TrimRight(value, "/")
	return nil
}

func setRefresh(c *Config, value string) error {
	c.Refresh = DefaultRefresh
	if value == "" {
		return nil
	}
	span, err := parseSpan(value)
	if err != nil {
		return fmt.Errorf("%w; %s is used", err, DefaultRefresh)
	}
	if span < minRefresh || span > maxRefresh {
		return fmt.Errorf("%q is not between %s and %s; %s is used", value, minRefresh, maxRefresh, DefaultRefresh)
	}
	c.Refresh = span
	return nil
}
