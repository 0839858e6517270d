package vpc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// monitor is a connection to a QEMU by its Machine Protocol (QMP): JSON objects, one a line.
type monitor struct {
	conn    net.Conn
	calls   sync.Mutex // one command after the other
	replies chan qmpMessage
	done    chan struct{} // QEMU has closed the connection

	mu     sync.Mutex
	events []qmpMessage
}

// qmpMessage is anything that QEMU says.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Error    *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
		Reason string `json:"reason"`
	} `json:"data"`
}

// newMonitor starts to talk to a QEMU.
func newMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn, replies: make(chan qmpMessage), done: make(chan struct{})}
	go m.read()
	if err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// read sorts what QEMU says until it ends.
func (m *monitor) read() {
	defer close(m.done)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var msg qmpMessage
		switch err := json.Unmarshal(lines.Bytes(), &msg); {
		case err != nil, msg.Greeting != nil:
		case msg.Event != "":
			m.mu.Lock()
			m.events = append(m.events, msg)
			m.mu.Unlock()
		default:
			m.replies <- msg
		}
	}
}

// answerTimeout is how long QEMU may take to answer; it takes no time.
const answerTimeout = time.Minute

// execute runs one command. It waits for the answer when ctx has ended, too, as that would be
// taken for the answer to the next command.
func (m *monitor) execute(ctx context.Context, command string, arguments map[string]any) error {
	m.calls.Lock()
	defer m.calls.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("asking QEMU for %s: %w", command, err)
	}
	select {
	case reply := <-m.replies:
		if reply.Error != nil {
			return fmt.Errorf("QEMU refuses %s: %s", text, reply.Error.Desc)
		}
		return nil
	case <-m.done:
		return fmt.Errorf("asking QEMU for %s: it has ended", command)
	case <-ctx.Done():
		m.conn.Close()
		return fmt.Errorf("asking QEMU for %s: %w", command, context.Cause(ctx))
	}
}

// count returns how many events of a kind there were, of a device if one is named.
func (m *monitor) count(event, device string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if e.Event == event && (device == "" || e.Data.Device == device) {
			n++
		}
	}
	return n
}

// await waits until there was one more such event than before.
func (m *monitor) await(ctx context.Context, what, event, device string, before int) error {
	return until(ctx, what, func() (bool, error) {
		if m.count(event, device) > before {
			return true, nil
		}
		select {
		case <-m.done:
			return false, errors.New("QEMU has ended")
		default:
			return false, nil
		}
	})
}

// shutdownReason is why QEMU ends, as far as it has said that.
func (m *monitor) shutdownReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if e.Event == "SHUTDOWN" {
			return e.Data.Reason
		}
	}
	return ""
}

// close ends the connection.
func (m *monitor) close() {
	m.conn.Close()
	for {
		select {
		case <-m.replies: // of a command that nobody waits for any more
		case <-m.done:
			return
		}
	}
}
