package varlinkserver

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime/debug"

	"github.com/varlink/go/varlink"

	"ec2netd/api"
	"ec2netd/api/orgec2netdnetwork"
	"ec2netd/service/state"
)

// connectionKey is the key of the connection in a call's context.
type connectionKey struct{}

func withConnection(ctx context.Context, c *connection) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// connectionOf returns the connection of a call.
func connectionOf(ctx context.Context) *connection {
	c, _ := ctx.Value(connectionKey{}).(*connection)
	return c
}

// dispatcher wraps the generated dispatcher with what every method needs.
type dispatcher struct {
	*orgec2netdnetwork.VarlinkInterface
	options *Options
}

// VarlinkDispatch runs one call. If it panics, only the client loses its connection.
func (d *dispatcher) VarlinkDispatch(ctx context.Context, call varlink.Call, method string) (err error) {
	defer d.options.recovered(method, &err)
	if call.In.Parameters == nil {
		// If all parameters are optional, a client may omit them as a whole.
		none := json.RawMessage("{}")
		call.In.Parameters = &none
	}
	return d.VarlinkInterface.VarlinkDispatch(ctx, call, method)
}

// recovered turns a panic into an error; it must be deferred.
func (o *Options) recovered(method string, err *error) {
	if r := recover(); r != nil {
		o.Logger.Error("A Varlink call failed within ec2netd; please report this",
			"method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = fmt.Errorf("%s panicked: %v", method, r)
	}
}

// network implements the methods of the IDL. It replies with the model itself, since the
// generated replies have each field as an argument; a test compares the field names.
type network struct{ *Server }

// Describe implements the method of the IDL.
func (n *network) Describe(ctx context.Context, c orgec2netdnetwork.VarlinkCall) error {
	if c.IsOneway() {
		return nil
	}
	_, err := connectionOf(ctx).sendState(ctx, &c.Call)
	return err
}

// interfaceReply is the reply of ListInterfaces.
type interfaceReply struct {
	Interface *state.Interface `json:"interface,omitempty"`
}

// ListInterfaces implements the method of the IDL.
func (n *network) ListInterfaces(ctx context.Context, c orgec2netdnetwork.VarlinkCall, id *string) error {
	s := api.NonNil(n.options.Agent.State())
	switch {
	case id != nil:
		e, err := api.Find(s, *id)
		if err != nil {
			return c.ReplyNoSuchInterface(ctx, *id)
		}
		return c.Reply(ctx, interfaceReply{e})
	case !c.WantsMore():
		return replyExpectedMore(ctx, &c.Call)
	case len(s.Interfaces) == 0:
		return c.Reply(ctx, interfaceReply{})
	}
	for i := range s.Interfaces {
		c.Continues = i < len(s.Interfaces)-1
		if err := c.Reply(ctx, interfaceReply{&s.Interfaces[i]}); err != nil {
			return err
		}
	}
	return nil
}

// Refresh implements the method of the IDL.
func (n *network) Refresh(ctx context.Context, c orgec2netdnetwork.VarlinkCall, id *string, wait, interactive *bool) error {
	peer := connectionOf(ctx).peer
	if !n.refreshes.take(peer.UID, 1) {
		return c.ReplyLimitsExceeded(ctx, fmt.Sprintf("too many refreshes by UID %d, or by users like it, are under way: wait for them", peer.UID))
	}
	defer n.refreshes.give(peer.UID, 1)
	peer.Interactive = interactive != nil && *interactive
	if err := n.options.Authorizer.Authorize(ctx, peer, api.ActionRefresh); err != nil {
		return c.ReplyNotPermitted(ctx, err.Error())
	}
	limited, cancel := context.WithTimeout(ctx, n.options.RefreshTimeout)
	defer cancel()
	waits := wait != nil && *wait
	mac := ""
	refresh := func() (*state.Changes, error) { return n.options.Agent.Refresh(limited, waits) }
	if id != nil {
		e, err := api.Find(n.options.Agent.State(), *id)
		if err != nil {
			return c.ReplyNoSuchInterface(ctx, *id)
		}
		mac = e.MAC
		refresh = func() (*state.Changes, error) { return n.options.Agent.RefreshInterface(limited, mac, waits) }
	}
	changes, err := n.refresh(limited, &c, refresh, mac)
	switch {
	case err != nil && limited.Err() != nil:
		return c.ReplyRefreshFailed(ctx, fmt.Sprintf("not done within %v, and goes on by itself: %v", n.options.RefreshTimeout, err))
	case err != nil:
		return c.ReplyRefreshFailed(ctx, err.Error())
	}
	return c.Reply(ctx, api.NonNilChanges(changes))
}

// refresh runs a refresh and, for a client that set more, also sends the changes so far.
func (n *network) refresh(ctx context.Context, c *orgec2netdnetwork.VarlinkCall, refresh func() (*state.Changes, error), mac string) (*state.Changes, error) {
	if !c.WantsMore() {
		return refresh()
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	before := n.options.Agent.State()
	watch := n.options.Agent.Watch(watching)
	type result struct {
		changes *state.Changes
		err     error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("refreshing panicked: %v", p)
			}
			done <- r
		}()
		r.changes, r.err = refresh()
	}()
	var last []state.InterfaceChange
	for {
		select {
		case r := <-done:
			return r.changes, r.err
		case s, ok := <-watch:
			if !ok {
				watch = nil
				continue
			}
			changes := state.Diff(before, s, mac)
			if reflect.DeepEqual(changes, last) || (last == nil && len(changes) == 0) {
				continue
			}
			last = changes
			c.Continues = true
			err := c.Reply(ctx, api.NonNilChanges(&state.Changes{Interfaces: changes}))
			c.Continues = false
			if err != nil {
				return nil, err
			}
		}
	}
}

// Monitor implements the method of the IDL.
func (n *network) Monitor(ctx context.Context, c orgec2netdnetwork.VarlinkCall) error {
	if !c.WantsMore() {
		return replyExpectedMore(ctx, &c.Call)
	}
	if c.IsOneway() {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx) // ends the watch
	defer cancel()
	c.Continues = true
	var last *state.State
	for s := range n.options.Agent.Watch(ctx) {
		// The last reply may be newer than the state that the watch sends now.
		if last != nil && (last.Same(s) || last.Same(n.options.Agent.State())) {
			continue
		}
		var err error
		if last, err = connectionOf(ctx).sendState(ctx, &c.Call); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// replyExpectedMore replies to a streaming call without more as systemd's services do.
// The library refuses to send errors of org.varlink.service, so this function writes the
// reply itself.
func replyExpectedMore(ctx context.Context, c *varlink.Call) error {
	if c.IsOneway() {
		return nil
	}
	_, err := c.Conn.Write(ctx, []byte(`{"error":"org.varlink.service.ExpectedMore","parameters":{}}`+"\x00"))
	return err
}
