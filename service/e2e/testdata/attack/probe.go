package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// probe is root's part: it refreshes over D-Bus and over Varlink, each time on a new
// connection, until its standard input ends, and prints the slowest answer of each. It is
// one process, as what it takes to start one says nothing about the daemon. Over D-Bus
// the time that the bus itself needs for a call, before or after, is not the daemon's; and
// nowhere is that for which the machine has kept this process from running.
func probe() error {
	if os.Getuid() != 0 {
		return errors.New("this is for root")
	}
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	var machine stalls
	go machine.watch()
	count, byBus, byVarlink := 0, time.Duration(0), time.Duration(0)
	for !ended.Load() || count == 0 {
		took, err := machine.without(refreshByBus)
		if err != nil {
			return fmt.Errorf("refreshing over D-Bus: %w", err)
		}
		byBus = max(byBus, took)
		if took, err = machine.without(refreshByVarlink); err != nil {
			return fmt.Errorf("refreshing over Varlink: %w", err)
		}
		byVarlink = max(byVarlink, took)
		count++
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Println(count, byBus, byVarlink)
	return nil
}

// stalls is for how long the machine has kept this process from running, in nanoseconds: by
// how much it has slept longer than it asked for.
type stalls struct{ atomic.Int64 }

// nap is how long it sleeps at a time, and what does not count.
const nap = 5 * time.Millisecond

func (s *stalls) watch() {
	for {
		began := time.Now()
		time.Sleep(nap)
		if late := time.Since(began) - nap; late > nap {
			s.Add(int64(late))
		}
	}
}

// without is how long a call has taken, less the stalls meanwhile.
func (s *stalls) without(call func() (time.Duration, error)) (time.Duration, error) {
	before := s.Load()
	took, err := call()
	time.Sleep(2 * nap) // until a nap that the end of the call was in is counted
	return took - time.Duration(s.Load()-before), err
}

func refreshByBus() (time.Duration, error) {
	b, err := dial()
	if err != nil {
		return 0, err
	}
	defer b.close()
	bus := func() (time.Duration, error) {
		began := time.Now()
		_, err := b.ask("GetId", "", nil)
		return time.Since(began), err
	}
	before, err := bus()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	m := describe()
	m.member, m.signature, m.body = "Refresh", "b", u32(nil, 0)
	if _, err := b.call(m); err != nil {
		return 0, err
	}
	took := time.Since(began)
	after, err := bus()
	return took - max(before, after), err
}

func refreshByVarlink() (time.Duration, error) {
	began := time.Now()
	c, err := connect(sockets()[0])
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, `{"method":"`+network+`Refresh"}`+"\x00"); err != nil {
		return 0, err
	}
	r, err := c.reply()
	if err == nil && r.Error != "" {
		err = fmt.Errorf("answered %+v", r)
	}
	return time.Since(began), err
}
