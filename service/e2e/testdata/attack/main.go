// Attack tries what a local user can do to stop, bloat or starve the daemon. It runs as an
// unprivileged user; its arguments are the name of one attack and the PID of the daemon.
// Every attack is bounded in count and ends by itself within a minute. It fails when an
// answer to what any user may ask is not the right one; whether the daemon has survived is
// for the caller to see. With the one argument probe it does what root does meanwhile.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
)

// most is how long an attack may take.
const most = time.Minute

// attack is one of them.
type attack struct {
	name, what string
	do         func(pid int) (string, error)
}

// attacks returns all of them, in the order in which they are listed.
func attacks() []attack {
	return []attack{
		{"signal-fds", "a signal of type ah with descriptors, to each connection of the daemon", signalFDs},
		{"call-fds", "method calls with descriptors", callFDs},
		{"large", "30 MiB in one message, to each connection of the daemon", large},
		{"nested", "62 nested variants in calls, properties, signals and errors", nested},
		{"fields", "header fields that the specification does not know", fields},
		{"stray", "2000 signals that nobody subscribed to, and forged ones", stray},
		{"forged", "replies that the daemon has not asked for", forged},
		{"calls", "thousands of calls whose replies nobody reads", calls},
		{"introspect", "Introspect on paths that are not objects", introspect},
		{"buses", "many connections to the bus that each call", buses},
		{"refresh", "Refresh and Set without permission", refreshes},
		{"interactive", "Refresh that polkit may ask a user about", interactive},
		{"name", "taking the bus name, and starting and reloading what the daemon is made of", name},
		{"files", "writing where the daemon writes", files},
		{"varlink-endless", "400 connections of 1 MiB without NUL", varlinkEndless},
		{"varlink-deaf", "connections that ask for all and read nothing", varlinkDeaf},
		{"varlink-crowd", "connections that come and go as fast as they can", varlinkCrowd},
		{"varlink-hold", "as many connections as there are, all idle", varlinkHold},
		{"varlink-nested", "nested JSON, in all places", varlinkNested},
		{"varlink-parameters", "parameters that are not known or of another type", varlinkParameters},
		{"varlink-refresh", "Refresh without permission", varlinkRefresh},
		{"varlink-interactive", "Refresh that polkit may ask a user about", varlinkInteractive},
	}
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	all := attacks()
	if len(args) == 1 && args[0] == "list" {
		for _, a := range all {
			fmt.Printf("%s\t%s\n", a.name, a.what)
		}
		return nil
	}
	if len(args) == 1 && args[0] == "probe" {
		return probe()
	}
	if len(args) != 2 {
		return errors.New("give the name of an attack and the PID of the daemon, list, or probe")
	}
	i := slices.IndexFunc(all, func(a attack) bool { return a.name == args[0] })
	pid, err := strconv.Atoi(args[1])
	if i < 0 || err != nil {
		return fmt.Errorf("no attack %q on PID %q: see list", args[0], args[1])
	}
	if os.Getuid() < 1000 {
		return errors.New("refusing to attack as a privileged user: that would prove nothing")
	}
	time.AfterFunc(most, func() {
		fmt.Fprintln(os.Stderr, "attack: not done within", most)
		os.Exit(1)
	})
	said, err := all[i].do(pid)
	fmt.Println(said)
	return err
}
