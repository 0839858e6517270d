package vpc

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// An agent runs commands in a machine without using its network: frames go over a virtio port.
// A frame has a channel, which identifies one command, a kind, and data. The lab's process has
// the other end of the port, and passes frames between it and the connections to a socket, one
// per command, so that "vpclab exec" can run commands too.

// agent is the program in the machine.
//
//go:embed agent.pl
var agent string

const (
	agentPath = "/usr/lib/vpclab/agent"
	agentUnit = "vpclab-agent.service"
	agentPort = "org.ec2netd.vpclab"
)

// agentFiles start the agent early in the boot, and stop it with the last processes.
var agentFiles = map[string]string{
	agentPath: agent,
	"/etc/systemd/system/" + agentUnit: `[Unit]
Description=Commands of the lab
DefaultDependencies=no
IgnoreOnIsolate=yes
[Service]
ExecStart=` + agentPath + " " + agentPort + `
Restart=always
KillMode=process
OOMPolicy=continue
TasksMax=infinity
`,
	"/etc/systemd/system/sysinit.target.d/vpclab.conf": "[Unit]\nWants=" + agentUnit + "\n",
}

// The kinds of frames: to the agent, and from it.
const (
	frameRun    = 'R' // the command: see commandFrame
	frameInput  = 'I' // for its standard input
	frameEnd    = 'E' // of its standard input
	frameKill   = 'K'
	frameHello  = 'H' // the agent is there
	frameOutput = 'O'
	frameErrors = 'X' // its standard error
	frameStatus = 'S' // it has ended, with this exit status
)

type frame struct {
	channel uint32
	kind    byte
	data    []byte
}

const (
	frameHeader = 9
	maxFrame    = 1 << 20
)

func readFrame(r io.Reader) (frame, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(header[5:])
	if size > maxFrame {
		return frame{}, fmt.Errorf("a frame of %d bytes", size)
	}
	f := frame{channel: binary.BigEndian.Uint32(header[:]), kind: header[4], data: make([]byte, size)}
	_, err := io.ReadFull(r, f.data)
	return f, err
}

func (f frame) bytes() []byte {
	b := binary.BigEndian.AppendUint32(nil, f.channel)
	b = binary.BigEndian.AppendUint32(append(b, f.kind), uint32(len(f.data)))
	return append(b, f.data...)
}

// commandFrame is the frame that starts a command: NUL-separated, the number of arguments, the
// arguments, and the environment.
func commandFrame(c Command) (frame, error) {
	argv, env, err := c.full()
	if err != nil {
		return frame{}, err
	}
	parts := append([]string{strconv.Itoa(len(argv))}, append(argv, env...)...)
	for _, p := range parts {
		if strings.ContainsRune(p, 0) {
			return frame{}, errors.New("an argument with a zero byte")
		}
	}
	return frame{kind: frameRun, data: []byte(strings.Join(parts, "\x00"))}, nil
}

// guest is the lab's end of a machine's port.
type guest struct {
	port     net.Conn
	listener net.Listener
	hello    chan struct{} // closed when the agent is there
	tasks    sync.WaitGroup

	write sync.Mutex // of whole frames to the port

	mu     sync.Mutex
	last   uint32
	open   map[uint32]*session
	closed bool
}

// session is one command.
type session struct {
	conn  net.Conn
	queue chan frame
	gone  chan struct{} // nobody wants its frames any more
}

// newGuest passes frames between a machine's port and the connections to a socket.
func newGuest(port net.Conn, listener net.Listener) *guest {
	g := &guest{port: port, listener: listener, hello: make(chan struct{}), open: make(map[uint32]*session)}
	g.tasks.Go(g.read)
	g.tasks.Go(g.accept)
	return g
}

// read passes on the agent's frames. A command whose output nobody reads blocks all others.
func (g *guest) read() {
	defer g.end()
	r := bufio.NewReader(g.port)
	for said := false; ; {
		f, err := readFrame(r)
		if err != nil {
			return
		}
		if f.kind == frameHello {
			if !said {
				close(g.hello)
			}
			said = true
			continue
		}
		g.mu.Lock()
		s := g.open[f.channel]
		g.mu.Unlock()
		if s == nil {
			continue
		}
		select {
		case s.queue <- f:
		case <-s.gone:
		}
	}
}

// accept accepts commands until the listener is closed.
func (g *guest) accept() {
	for {
		conn, err := g.listener.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		if g.closed {
			g.mu.Unlock()
			conn.Close()
			continue
		}
		g.last++
		channel, s := g.last, &session{conn: conn, queue: make(chan frame, 16), gone: make(chan struct{})}
		g.open[channel] = s
		g.mu.Unlock()
		g.tasks.Go(func() { g.serve(channel, s) })
	}
}

// serve passes the frames of one command on.
func (g *guest) serve(channel uint32, s *session) {
	g.tasks.Go(func() {
		defer s.conn.Close()
		for {
			select {
			case f := <-s.queue:
				if _, err := s.conn.Write(f.bytes()); err != nil || f.kind == frameStatus {
					return
				}
			case <-s.gone:
				return
			}
		}
	})
	r := bufio.NewReader(s.conn)
	for {
		f, err := readFrame(r)
		if err != nil {
			f = frame{kind: frameKill} // the agent ignores it for a command that has ended
		}
		f.channel = channel
		if g.send(f) != nil || err != nil {
			break
		}
	}
	g.mu.Lock()
	delete(g.open, channel)
	g.mu.Unlock()
	close(s.gone)
}

func (g *guest) send(f frame) error {
	g.write.Lock()
	defer g.write.Unlock()
	_, err := g.port.Write(f.bytes())
	return err
}

// end ends all commands.
func (g *guest) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, s := range g.open {
		s.conn.Close()
	}
}

// close ends everything and waits for that.
func (g *guest) close() {
	_ = g.listener.Close() // it only accepts connections
	g.port.Close()
	g.end()
	g.tasks.Wait()
}

// StatusError is the exit status of a command in a machine, if not 0.
type StatusError int

// Error implements error.
func (e StatusError) Error() string { return "exit status " + strconv.Itoa(int(e)) }

// RunInMachine runs a command in a machine, which may belong to another process, by its
// [InstanceStatus].Socket. The command, with all its children, is killed when ctx ends. The
// error is a [StatusError] if the command ran.
func RunInMachine(ctx context.Context, socket string, c Command, stdout, stderr io.Writer) error {
	first, err := commandFrame(c)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("reaching the machine: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(first.bytes()); err != nil {
		return fmt.Errorf("reaching the machine: %w", err)
	}
	go func() {
		if c.Stdin != nil {
			// An error means that the command has ended, or that the reader has, which ends
			// here too.
			_, _ = io.Copy(inputWriter{conn}, c.Stdin)
		}
		_, _ = conn.Write(frame{kind: frameEnd}.bytes())
	}()
	r := bufio.NewReader(conn)
	for {
		f, err := readFrame(r)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("the machine has ended, or the lab: %w", err)
		}
		switch f.kind {
		case frameOutput:
			_, err = stdout.Write(f.data)
		case frameErrors:
			_, err = stderr.Write(f.data)
		case frameStatus:
			status, err := strconv.Atoi(string(f.data))
			if err == nil && status != 0 {
				err = StatusError(status)
			}
			return err
		}
		if err != nil {
			return err
		}
	}
}

// inputWriter passes written data to a command's standard input.
type inputWriter struct{ conn net.Conn }

func (w inputWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), 1<<15)
		if _, err := w.conn.Write(frame{kind: frameInput, data: rest[:n]}.bytes()); err != nil {
			return len(p) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(p), nil
}
