package metadata

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"
)

// ImdsdSocket is where systemd-imdsd (systemd 261 and later) serves the Varlink interface
// io.systemd.InstanceMetadata. Where an instance is set up so that direct access to the
// metadata service is prohibited, it is the way left to a service without CAP_NET_ADMIN:
// imdsd's own requests carry a firewall mark that such a set-up lets through.
const ImdsdSocket = "/run/systemd/io.systemd.InstanceMetadata"

// imdsdUnit listens there, once it is started.
const imdsdUnit = "systemd-imdsd.socket"

// imdsdTimeout bounds one call. systemd-imdsd is started by the first, may look for the
// right interface, and tries again by itself.
const imdsdTimeout = 8 * time.Second

// imdsd asks systemd-imdsd, one call at a time: it is started for each connection.
type imdsd struct{ busy chan struct{} }

// get reads a key, over a connection of its own: systemd-imdsd 262.1 was seen to answer
// later calls on one with io.systemd.System (facts: locked-service). What imdsd has in its cache does not count: it keeps
// that for a quarter of an hour.
func (d *imdsd) get(ctx context.Context, path Path, key string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, imdsdTimeout)
	defer cancel()
	select {
	case d.busy <- struct{}{}:
		defer func() { <-d.busy }()
	case <-ctx.Done():
		return "", &Error{Key: key, Kind: Timeout, Err: fmt.Errorf("%s did not answer in time", path)}
	}
	conn, err := varlink.NewConnectionWithDialer(ctx, "unix:"+path.Socket, boundedDialer{})
	if err != nil {
		return "", &Error{Key: key, Kind: Unreachable, Err: fmt.Errorf("%s: %w", path, err)}
	}
	defer func() { _ = conn.Close() }() // all has been said
	in := struct {
		Key       string `json:"key"`
		Interface int    `json:"interface,omitempty"`
		Cache     bool   `json:"cache"`
	}{
		// A directory is listed with and without a slash at the end.
		Key: "/meta-data/" + strings.TrimSuffix(key, "/"), Interface: path.Index,
	}
	var out struct {
		Data string `json:"data"`
	}
	if err := conn.Call(ctx, "io.systemd.InstanceMetadata.Get", in, &out); err != nil {
		return "", classifyImdsd(ctx, key, path, err)
	}
	body, err := base64.StdEncoding.DecodeString(out.Data)
	if err == nil && len(body) > maxValue {
		err = tooLong("the answer is", maxValue)
	}
	if err != nil {
		return "", &Error{Key: key, Kind: Malformed, Status: http.StatusOK, Err: fmt.Errorf("%s: %w", path, err)}
	}
	return string(body), nil
}

// maxReply is how long a reply of systemd-imdsd may be: the longest value in base64, and the
// JSON around it.
const maxReply = (maxValue+2)/3*4 + 4<<10

// boundedDialer makes connections that end where a reply is too long: the Varlink library
// reads up to a NUL, however long that takes (D13).
type boundedDialer struct{}

// DialContext implements varlink.ContextDialer.
func (boundedDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: raw, left: maxReply}, nil
}

// boundedConn is a connection that so many bytes can be read from. It is none that takes file
// descriptors.
type boundedConn struct {
	net.Conn
	left int
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, tooLong("the reply is", maxReply)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// classifyImdsd turns a failed call into an Error.
func classifyImdsd(ctx context.Context, key string, path Path, err error) error {
	e := &Error{Key: key, Kind: ServerError}
	var answer *varlink.Error
	if !errors.As(err, &answer) {
		e.Kind, e.Err = kindOfCause(err), fmt.Errorf("%s: %s", path, clip(err.Error()))
		switch {
		case ctx.Err() != nil:
			e.Kind, e.Err = Timeout, fmt.Errorf("%s did not answer in time", path)
		case e.Kind == Unreachable:
			// There was a connection, so it is the reply: no JSON, or an error of the
			// Varlink interface itself.
			e.Kind = Malformed
		}
		return e
	}
	switch answer.Name {
	case "io.systemd.InstanceMetadata.KeyNotFound":
		e.Kind = NotFound
	case "io.systemd.InstanceMetadata.NotAvailable", "io.systemd.InstanceMetadata.NotSupported",
		"io.systemd.InstanceMetadata.CommunicationFailure":
		e.Kind = Unreachable
	case "io.systemd.InstanceMetadata.Timeout":
		e.Kind = Timeout
	case "org.varlink.service.PermissionDenied", "io.systemd.InteractiveAuthenticationRequired":
		e.Kind = Denied
	}
	e.Err = fmt.Errorf("%s answered %s", path, clip(answer.Name))
	// An error of the system says which in its parameters.
	if raw, ok := answer.Parameters.(*json.RawMessage); ok && raw != nil {
		var of struct {
			Number int `json:"errno"`
		}
		if json.Unmarshal(*raw, &of) == nil && of.Number > 0 {
			e.Err = fmt.Errorf("%w: %s", e.Err, syscall.Errno(of.Number).Error())
		}
	}
	return e
}

// prohibited tells whether the routing tables prohibit direct access, as systemd-imdsd's
// own set-up has it. A socket that is bound to a device would get through all the same,
// for the kernel takes every destination to be on a link that was named to it; but such a
// lock is there for a reason, and is respected where systemd-imdsd can be asked. To connect
// a datagram socket sends nothing; and that is asked for each look at the ENIs, so without
// what net.Dial does besides.
func prohibited() bool {
	probe, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(probe) }()
	to := netip.MustParseAddr(strings.TrimPrefix(EndpointIPv4, "http://")).As4()
	return errors.Is(unix.Connect(probe, &unix.SockaddrInet4{Port: 80, Addr: to}), unix.EACCES)
}

// locked tells whether a failure is that of direct access being prohibited: by a route of
// the type prohibit (EACCES), unreachable or blackhole, or by a packet filter.
func locked(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EHOSTUNREACH, syscall.EINVAL, syscall.EPERM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// absent tells whether there is no systemd-imdsd to ask.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
