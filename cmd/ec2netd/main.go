// Command ec2netd keeps the network of an EC2 instance as EC2 says it is, through
// systemd-networkd. See ec2netd(8).
//
// This file only reads the command line and wires the parts together.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ec2netd/api"
	"ec2netd/api/dbusserver"
	"ec2netd/api/polkit"
	"ec2netd/api/varlinkserver"
	"ec2netd/service/agent"
	"ec2netd/service/config"
	"ec2netd/service/conflict"
	"ec2netd/service/journal"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/orphan"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/platform"
	"ec2netd/service/poller"
	"ec2netd/service/status"
	"ec2netd/service/store"
	"ec2netd/service/systemd"
	"ec2netd/service/udev"
	"ec2netd/service/unitfile/disk"
)

// version is set by the linker, see Makefile.
var version = ""

// The daemon's own files: views is what is known, over a restart, hint what the next boot can
// begin with, and rules which policy rules are this daemon's. ec2netd-release.service makes the
// directories, which lie in two file systems: each has the marks of what is void in the other.
var (
	viewsPlace = persist.Place{Path: "/run/ec2netd/views.json", Mark: "/var/lib/ec2netd/views.void"}
	rulesPlace = orphan.PlaceOf("")
	hintPlace  = persist.Place{Path: "/var/lib/ec2netd/boot.json", Mark: "/run/ec2netd/boot.void"}
)

// orphansUnit removes policy rules that networkd has forgotten, and gives links their alternative
// names, by running this program with --remove-orphans.
const (
	orphansUnit = "ec2netd-orphans.service"
	ownUnit     = systemd.Daemon
)

// runsLink is what 80-ec2netd.rules looks at, and releaseUnit runs this program with
// --release when the daemon has ended (E9).
const (
	runsLink    = "/run/ec2netd/running"
	releaseUnit = "ec2netd-release.service"
)

// socketName is FileDescriptorName= of ec2netd.socket, metricsName that of
// ec2netd-metrics.socket.
const (
	socketName  = "varlink"
	metricsName = "metrics"
)

// gcPercent is by how much the heap may grow until it is collected.
const gcPercent = 30

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("ec2netd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, `Usage: ec2netd [OPTIONS]

Keeps the network of an EC2 instance as EC2 says it is, through systemd-networkd.
It is started by ec2netd.service; ask it with ec2netctl(1), busctl(1) or varlinkctl(1).
Configuration is in /etc/ec2netd.conf, see ec2netd.conf(5).

`)
		flags.PrintDefaults()
	}
	showVersion := flags.Bool("version", false, "print the version and exit")
	orphans := flags.Bool("remove-orphans", false, "remove what networkd has forgotten, give links their alternative names, and exit: see "+orphansUnit)
	reloaded := flags.Int("reload", 0, "check the configuration, have the daemon with this `PID` take it up, and exit: see ExecReload= of "+ownUnit)
	released := flags.Bool("release", false, "let networkd configure new ENIs without the daemon, and exit: see "+releaseUnit)
	link := flags.String("leaves-alone", "", "exit with 0 if ec2netd leaves this `LINK` to whoever else configures it, else with 1: see "+ifupUnit)
	starts := flags.Bool("before-networkd", false, "put in place what networkd is to find when it starts, and exit: see "+startUnit)
	verbose := flags.Bool("debug", false, "log what is done in each step")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "ec2netd: takes no arguments, but was given %q\n", flags.Arg(0))
		return exitUsage
	}
	if *showVersion {
		fmt.Fprintln(stdout, "ec2netd", versionText())
		return 0
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	control := journal.NewLog(level, stderr)
	log := control.Logger()
	if *orphans {
		if err := removeOrphans(log); err != nil {
			log.Error("Rules that networkd forgot stay", "reason", err.Error())
			return exitFailure
		}
		return 0
	}
	if *link != "" {
		leaves, err := leavesAlone("/", *link)
		if err != nil {
			log.Warn("Failed to find out whether a link is an ENI's: it is left to whoever else configures it", "interface", *link, "reason", err.Error())
		}
		if !leaves {
			return exitFailure
		}
		return 0
	}
	if *starts {
		if err := beforeNetworkd(log); err != nil {
			log.Error("Failed to put in place what networkd is to find: its start may interrupt connections", "reason", err.Error())
			return exitFailure
		}
		return 0
	}
	if *released {
		if err := release(context.Background(), log); err != nil {
			log.Error("Failed to let networkd configure new ENIs without ec2netd", "reason", err.Error())
			return exitFailure
		}
		return 0
	}
	if *reloaded != 0 {
		if err := askToReload(*reloaded, "/", log); err != nil {
			log.Error("Failed to reload the configuration", "reason", err.Error())
			return exitFailure
		}
		return 0
	}
	// From the first moment on: systemd takes an end by it for a success, and would not start
	// the daemon again.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, control, hangups); err != nil {
		log.Error("Stopping", "reason", err.Error())
		return exitFailure
	}
	return 0
}

// versionText is the version that the linker set, or else the one that Go recorded.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func removeOrphans(log *slog.Logger) error {
	files := &disk.Reader{}
	removed, err := orphan.Remove(orphan.NewRecord(rulesPlace), files)
	for _, rule := range removed {
		log.Debug("removed a rule", "from", rule.From.String(), "table", rule.Table, "priority", rule.Priority)
	}
	addresses, addressErr := orphan.RemoveAddresses(orphan.NewRecord(rulesPlace), files)
	for _, own := range addresses {
		log.Debug("removed an address", "mac", own.MAC, "address", own.Address.String())
	}
	names, nameErr := orphan.RemoveNames(files)
	for _, name := range names {
		log.Debug("removed an alternative name", "interface", name.Link, "altname", name.Name)
	}
	added, addErr := orphan.AddNames(files, keepsNames)
	for _, name := range added {
		log.Debug("added an alternative name", "interface", name.Link, "altname", name.Name)
	}
	return errors.Join(err, addressErr, nameErr, addErr)
}

// keepsNames reports whether the administrator keeps alternative names away from a link.
func keepsNames(l *kernel.Link) bool {
	files := (&disk.Reader{}).Tree()
	link := plan.Link{Link: *l, Extent: files.Extent(l.Name)}
	link.Driver = files.LinkDropIn(l.Name).Driver() // that is for this link
	applied, ok := (&udev.Udev{}).LinkFile(l.Index)
	if !ok || files.Gone(applied) {
		applied = ""
	}
	why, _ := plan.KeepsNames(&link, files.Look(filepath.Base(plan.LinkPath(l.Name))), applied)
	return why != status.None
}

// task is a long-running part.
type task interface {
	Run(ctx context.Context) error
	String() string
}

// part is a task for which the servers wait.
type part interface {
	task
	Ready() <-chan struct{}
}

func serve(ctx context.Context, control *journal.Log, hangups <-chan os.Signal) error {
	log := control.Logger()
	// With 15 ENIs of 50 addresses there are 4 MiB to keep, and 22 MiB would be resident, 21 if
	// the heap grew by half: so memory is collected sooner, which costs next to nothing.
	debug.SetGCPercent(gcPercent)
	// What is done each few seconds is little, and a fifth of its CPU time was that of
	// threads which wake each other up.
	runtime.GOMAXPROCS(1)
	listeners, err := activated()
	if err != nil {
		return err
	}
	settings := config.Load("/")
	for _, problem := range settings.Problems {
		log.Warn("Configuration: " + problem.String())
	}
	if err := announce(); err != nil {
		log.Warn("networkd configures new ENIs before their own files are there", "reason", err.Error())
	}
	observer, err := kernel.NewObserver(settings.Drivers)
	if err != nil {
		return err
	}
	defer observer.Close()
	watcher := kernel.NewWatcher(settings.Drivers, log)
	bus := &networkd.Client{}
	defer bus.Close()
	others := &conflict.Looker{Units: bus.ActiveUnits, Drivers: settings.Drivers}
	client := metadata.NewClient(metadata.Options{UserAgent: "ec2netd/" + versionText(), Ignored: ignored(log)})
	options := agent.Options{
		Version: versionText(),
		Kernel:  observer,
		Poller: poller.New(poller.Options{
			Client: client, Log: log, Endpoint: settings.Endpoint, Imdsd: metadata.ImdsdSocket, RefreshEvery: settings.Refresh, Views: viewsPlace,
		}),
		Metadata:     client,
		Networkd:     bus,
		Manager:      bus,
		Udev:         &udev.Udev{GiveNames: func(ctx context.Context) error { return bus.Run(ctx, orphansUnit) }},
		Store:        &store.Store{},
		Files:        &disk.Reader{},
		Others:       others,
		Log:          log,
		Events:       []<-chan struct{}{watcher.Changed(), bus.Changed()},
		RefreshEvery: settings.Refresh,
		Sections:     settings.ENIs,
		Drivers:      settings.Drivers,
		Hint:         hintPlace,
		Rules:        orphan.NewRecord(rulesPlace),
		RemoveOrphans: func(ctx context.Context) error {
			return bus.Run(ctx, orphansUnit)
		},
		Problems: problemsOf(settings),
		SetDrivers: func(drivers []string) {
			observer.SetDrivers(drivers)
			watcher.SetDrivers(drivers)
			others.Drivers = drivers // the agent calls both, one after the other
		},
		CPU:  used,
		Trim: debug.FreeOSMemory,
	}
	if every, err := daemon.SdWatchdogEnabled(false); err == nil && every > 0 {
		options.WatchdogEvery = every / 3
		options.Watchdog = func() { notify(log, daemon.SdNotifyWatchdog) }
	}
	var served api.Agent
	var loop *agent.Agent
	var parts []part
	again := &reloader{hangups: hangups, root: "/", inForce: settings, log: log}
	if reason := notEC2(settings.Platform); reason != "" {
		idle := platform.NewUnsupported(platform.Options{
			Version: versionText(), Reason: reason, Store: &store.Store{}, Networkd: bus, Log: log,
			Watchdog: options.Watchdog, WatchdogEvery: options.WatchdogEvery,
		})
		served, parts = idle, []part{idle}
	} else {
		if err := leaveNetwork("/"); err != nil {
			log.Warn("cloud-init and ifupdown may configure the network too", "reason", err.Error())
		}
		loop = agent.New(options)
		served, parts = loop, []part{watcher, loop}
		again.agent = loop
	}
	authorizer := &polkit.Authorizer{}
	defer authorizer.Close()
	bussed, err := dbusserver.New(dbusserver.Options{Agent: served, Authorizer: authorizer, Log: control, Logger: log})
	if err != nil {
		return err
	}
	servers := []task{bussed, again, presenceOf(listeners, loop, bus, log)}
	if len(listeners) > 0 {
		linked, err := varlinkserver.New(varlinkserver.Options{
			Agent: served, Authorizer: authorizer, Listeners: slices.Collect(maps.Values(listeners)), Version: versionText(), Logger: log,
		})
		if err != nil {
			return err
		}
		servers = append(servers, linked)
	} else {
		log.Warn("No socket was passed: there is no Varlink API. Start ec2netd by ec2netd.service")
	}

	group, ctx := errgroup.WithContext(ctx)
	start := func(tasks ...task) {
		for _, t := range tasks {
			group.Go(func() error {
				if err := t.Run(ctx); err != nil {
					return fmt.Errorf("%s: %w", t, err)
				}
				return nil
			})
		}
	}
	for _, p := range parts {
		start(p)
	}
	group.Go(func() error {
		for _, p := range parts {
			select {
			case <-ctx.Done():
				return nil
			case <-p.Ready():
			}
		}
		// Clients that made systemd start the daemon wait until there is something to
		// say. The bus is not waited for: at boot it starts later than this daemon.
		start(servers...)
		notify(log, daemon.SdNotifyReady)
		<-ctx.Done()
		notify(log, daemon.SdNotifyStopping)
		return nil
	})
	return group.Wait()
}

// notEC2 says why there is nothing to do on this machine; it is empty where there is.
func notEC2(where config.Platform) string {
	if where == config.PlatformAny {
		return ""
	}
	return platform.Read("/").NotEC2()
}

// ignored logs what the metadata lists and this version does not know.
func ignored(log *slog.Logger) func(what, name string) {
	return func(what, name string) {
		log.Info("Ignoring what the metadata lists and this version does not know", "what", what, "name", name)
	}
}

// used is the processor time that this process has used.
func used() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func notify(log *slog.Logger, what string) {
	if _, err := daemon.SdNotify(false, what); err != nil {
		log.Debug("notifying systemd", "what", what, "error", err)
	}
}

// activated returns the sockets that systemd passed, by their names, none if it passed none.
func activated() (map[string]net.Listener, error) {
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("taking over the sockets from systemd: %w", err)
	}
	all := make(map[string]net.Listener, len(byName))
	for name, listeners := range byName {
		if (name != socketName && name != metricsName) || len(listeners) != 1 || listeners[0] == nil {
			return nil, fmt.Errorf("systemd passed another socket than one named %q and one named %q: is FileDescriptorName= of ec2netd.socket or ec2netd-metrics.socket changed?",
				socketName, metricsName)
		}
		all[name] = listeners[0]
	}
	return all, nil
}
