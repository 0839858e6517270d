package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const network = "org.ec2netd.Network."

// sockets are those of the daemon: one serves what the other does.
func sockets() []string {
	return []string{"/run/ec2netd/org.ec2netd.Network", "/run/systemd/report/org.ec2netd"}
}

// caller is a Varlink client.
type caller struct {
	net.Conn
	r *bufio.Reader
}

func connect(socket string) (*caller, error) {
	c, err := net.Dial("unix", socket)
	for errors.Is(err, syscall.EAGAIN) { // the queue is full
		time.Sleep(time.Millisecond)
		c, err = net.Dial("unix", socket)
	}
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &caller{c, bufio.NewReader(c)}, nil
}

// request is a call of a method.
func request(method, parameters string) string {
	return `{"method":"` + method + `","parameters":` + parameters + `,"more":true}` + "\x00"
}

// reply is one that was received.
type reply struct {
	Error      string
	Parameters json.RawMessage
	Continues  bool
}

func (c *caller) call(method, parameters string) (*reply, error) {
	if _, err := io.WriteString(c, request(method, parameters)); err != nil {
		return nil, err
	}
	return c.reply()
}

func (c *caller) reply() (*reply, error) {
	text, err := c.r.ReadString(0)
	if err != nil {
		return nil, err
	}
	var r reply
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "\x00")), &r); err != nil {
		return nil, fmt.Errorf("%w: %.200q", err, text)
	}
	return &r, nil
}

// serves checks that the daemon answers this user over Varlink once the attack is over.
func serves(said string) (string, error) {
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		c, err := connect(sockets()[0])
		if err != nil {
			last = err
			continue
		}
		r, err := c.call(network+"Describe", "{}")
		c.Close()
		if err == nil && r.Error == "" && strings.Contains(string(r.Parameters), `"instanceId":"i-`) {
			return said, nil
		}
		last = errors.Join(err, fmt.Errorf("the last answer is %+.300v", r))
	}
	return said, fmt.Errorf("the daemon does not answer Describe over Varlink: %w", last)
}

func varlinkEndless(int) (string, error) {
	flood := []byte(strings.Repeat("x", 1<<20))
	var open []net.Conn
	for i := range 400 {
		c, err := connect(sockets()[i%2])
		if err != nil {
			continue
		}
		defer c.Close()
		_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = c.Write(flood) // as much as is taken
		open = append(open, c)
	}
	time.Sleep(2 * time.Second)
	for _, c := range open {
		c.Close()
	}
	return serves(fmt.Sprintf("%d connections", len(open)))
}

// varlinkDeaf has streams and answers of every kind sent, and reads none.
func varlinkDeaf(int) (string, error) {
	var open []net.Conn
	for i := range 300 {
		c, err := connect(sockets()[i%2])
		if err != nil {
			continue
		}
		defer c.Close()
		open = append(open, c)
		method := network + []string{"Monitor", "ListInterfaces", "Describe"}[i%3]
		if i%2 == 1 {
			method = []string{"io.systemd.Metrics.List", "io.systemd.Metrics.Describe", network + "Monitor"}[i%3]
		}
		_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = io.WriteString(c, strings.Repeat(request(method, "{}"), 300))
	}
	// The state changes in the meantime, and ENIs come and go.
	time.Sleep(8 * time.Second)
	for _, c := range open {
		c.Close()
	}
	return serves(fmt.Sprintf("%d connections", len(open)))
}

// varlinkCrowd keeps the queues of both sockets full. It has two threads, which wait where a
// queue is full: more would take the processors from root, and not the daemon's time.
func varlinkCrowd(int) (string, error) {
	var made, full atomic.Int64
	var crowd sync.WaitGroup
	end := time.Now().Add(8 * time.Second)
	for i := range 2 {
		crowd.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				c, err := net.Dial("unix", sockets()[i])
				switch {
				case errors.Is(err, syscall.EAGAIN):
					full.Add(1)
					time.Sleep(time.Millisecond) // as root does: who tries most often gets in
				case err == nil:
					made.Add(1)
					if n%2 == 0 {
						_, _ = io.WriteString(c, request(network+"Describe", "{}"))
					}
					c.Close()
				}
			}
		})
	}
	crowd.Wait()
	return serves(fmt.Sprintf("%d connections, %d times the queue was full", made.Load(), full.Load()))
}

func varlinkHold(int) (string, error) {
	served, refused := 0, 0
	for i := range 600 {
		c, err := connect(sockets()[i%2])
		if err != nil {
			continue
		}
		defer c.Close()
		r, err := c.call("org.varlink.service.GetInfo", "{}")
		switch {
		case err != nil: // closed before the call was sent
			refused++
		case r.Error == network+"LimitsExceeded":
			refused++
		case r.Error != "":
			return "", fmt.Errorf("refused with %+v", r)
		default:
			served++
		}
	}
	if served > 64 || served == 0 {
		return "", fmt.Errorf("of one user %d connections are served, %d are not", served, refused)
	}
	time.Sleep(2 * time.Second)
	return fmt.Sprintf("%d connections are served, %d are refused", served, refused), nil
}

func varlinkNested(int) (string, error) {
	open, shut := strings.Repeat("[", 7000), strings.Repeat("]", 7000)
	object := strings.Repeat(`{"a":`, 2000) + "1" + strings.Repeat("}", 2000)
	for range 20 {
		for _, message := range []string{
			open, open + shut, object, strings.Repeat("[", 1<<20), strings.Repeat(`{"a":`, 1<<18),
			`{"method":"` + network + `Describe","parameters":` + object + "}",
			`{"method":"` + network + `ListInterfaces","parameters":{"id":` + open + shut + "}}",
			`{"method":` + open + shut + "}",
			`{"parameters":` + open + shut + `,"method":"` + network + `Refresh"}`,
			strings.Repeat("\x00", 5000),
			`{"method":"` + strings.Repeat("a.", 6000) + `"}`,
		} {
			for _, socket := range sockets() {
				c, err := connect(socket)
				if err != nil {
					return "", err
				}
				_, _ = io.WriteString(c, message+"\x00")
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}
	}
	return serves("sent")
}

func varlinkParameters(int) (string, error) {
	c, err := connect(sockets()[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	for _, bad := range []struct{ method, parameters, name string }{
		{network + "Describe", `{"unknown":1}`, "unknown"},
		{network + "Monitor", `{"unknown":{}}`, "unknown"},
		{network + "ListInterfaces", `{"id":7}`, "id"},
		{network + "Refresh", `{"wait":"yes"}`, "wait"},
		{network + "Refresh", `{"force":true}`, "force"},
		{"io.systemd.Metrics.List", `{"unknown":1}`, "unknown"},
		{"org.varlink.service.GetInfo", `{"unknown":1}`, "unknown"},
	} {
		r, err := c.call(bad.method, bad.parameters)
		if err != nil {
			return "", err
		}
		var invalid struct{ Parameter string }
		if json.Unmarshal(r.Parameters, &invalid) != nil || r.Error != "org.varlink.service.InvalidParameter" || invalid.Parameter != bad.name {
			return "", fmt.Errorf("%s%s is answered %s %.200s", bad.method, bad.parameters, r.Error, r.Parameters)
		}
	}
	return serves("refused by name")
}

func varlinkRefresh(int) (string, error) { return varlinkRefuse("false", 100) }

func varlinkInteractive(int) (string, error) { return varlinkRefuse("true", 15) }

// varlinkRefuse asks for what it may not do, on as many connections as it gets.
func varlinkRefuse(interactive string, times int) (string, error) {
	var refused, waiting atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, 64)
	for range cap(errs) {
		all.Go(func() {
			c, err := connect(sockets()[0])
			if err != nil {
				return
			}
			defer c.Close()
			for range times {
				_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
				r, err := c.call(network+"Refresh", `{"wait":true,"allowInteractiveAuthentication":`+interactive+`}`)
				switch {
				case errors.Is(err, os.ErrDeadlineExceeded):
					waiting.Add(1)
					return
				case err != nil:
					return // refused as a connection
				case r.Error != network+"NotPermitted" && r.Error != network+"LimitsExceeded":
					errs <- fmt.Errorf("answered %+v", r)
					return
				}
				refused.Add(1)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	all.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return "", err
	}
	return serves(fmt.Sprintf("%d refusals, %d without an answer in time", refused.Load(), waiting.Load()))
}
