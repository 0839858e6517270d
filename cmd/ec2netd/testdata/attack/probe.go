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
// the time that the bus itself needs for a call, before or after, is not the daemon's.
func probe() error {
	if os.Getuid() != 0 {
		return errors.New("this is for root")
	}
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	count, byBus, byVarlink := 0, time.Duration(0), time.Duration(0)
	for !ended.Load() || count == 0 {
		took, err := refreshByBus()
		if err != nil {
			return fmt.Errorf("refreshing over D-Bus: %w", err)
		}
		byBus = max(byBus, took)
		if took, err = refreshByVarlink(); err != nil {
			return fmt.Errorf("refreshing over Varlink: %w", err)
		}
		byVarlink = max(byVarlink, took)
		count++
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Println(count, byBus, byVarlink)
	return nil
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
