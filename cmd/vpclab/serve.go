package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// server manages a lab with one instance.
type server struct {
	vpc  *vpc.VPC
	inst *vpc.Instance
	down context.CancelFunc
}

// serve answers requests until ctx ends or a request ends the lab.
func (s *server) serve(ctx context.Context, ready func()) error {
	ctx, s.down = context.WithCancel(ctx)
	defer s.down()
	path := filepath.Join(s.vpc.Dir(), socketName)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("opening the control socket: %w", err)
	}
	srv := &http.Server{Handler: s.routes(), ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	ready()
	select {
	case err := <-done:
		return fmt.Errorf("serving the control socket: %w", err)
	case <-ctx.Done():
	}
	// The reply to "down" must still be sent.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(end)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if serveErr := <-done; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	route(mux, "status", func(ctx context.Context, _ struct{}) (vpc.Status, error) { return s.vpc.Status(ctx) })
	route(mux, "attach", s.attach)
	route(mux, "detach", s.detach)
	route(mux, "assign", func(ctx context.Context, r changeRequest) (changeReply, error) {
		r.assign = true
		return s.change(ctx, r)
	})
	route(mux, "unassign", s.change)
	route(mux, "fault", s.fault)
	route(mux, "set", s.set)
	route(mux, "carrier", s.carrier)
	route(mux, "mute", s.mute)
	route(mux, "endpoint", func(ctx context.Context, r endpointRequest) (struct{}, error) {
		return struct{}{}, s.vpc.SetMetadataEndpoint(ctx, r.Family, r.State)
	})
	route(mux, "power", s.power)
	route(mux, "log", func(_ context.Context, r logRequest) ([]imds.Request, error) {
		return s.inst.Metadata().RequestsSince(r.Since), nil
	})
	route(mux, "down", func(context.Context, struct{}) (struct{}, error) {
		s.down()
		return struct{}{}, nil
	})
	return mux
}

// route serves one kind of request.
func route[Q, A any](mux *http.ServeMux, name string, f func(context.Context, Q) (A, error)) {
	mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		err := json.NewDecoder(r.Body).Decode(&q)
		var a any
		if err == nil {
			a, err = f(r.Context(), q)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			a = errorReply{Error: err.Error()}
		}
		// An error here means that the client has disconnected.
		_ = json.NewEncoder(w).Encode(a)
	})
}

// eni returns the ENI that a request names; the default is the last one.
func (s *server) eni(key string) (*vpc.ENI, error) {
	enis := s.inst.ENIs()
	if key == "" {
		return enis[len(enis)-1], nil
	}
	if e := s.inst.ENI(key); e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("there is no ENI %q; \"vpclab status\" lists them", key)
}

func (s *server) attach(ctx context.Context, r attachRequest) (vpc.ENIStatus, error) {
	r.Spec.Name = r.Name
	half := r.LinkOnly || r.MetadataOnly
	var e *vpc.ENI
	var err error
	switch {
	case r.ENI != "":
		if e, err = s.eni(r.ENI); err == nil && !half {
			e.SetPropagation(r.Spec.Propagation)
			err = e.Reattach(ctx, r.Name)
		}
	case half:
		e, err = s.inst.Create(ctx, r.Spec)
	default:
		e, err = s.inst.Attach(ctx, r.Spec)
	}
	if err == nil && r.MetadataOnly {
		var p imds.Propagation
		if r.Spec.Propagation != nil {
			p = *r.Spec.Propagation
		}
		e.Publish(p)
	}
	if err == nil && r.LinkOnly {
		err = e.Plug(ctx)
	}
	if err != nil {
		return vpc.ENIStatus{}, err
	}
	return e.Status(ctx)
}

func (s *server) detach(ctx context.Context, r detachRequest) (vpc.ENIStatus, error) {
	e, err := s.eni(r.ENI)
	if err != nil {
		return vpc.ENIStatus{}, err
	}
	if r.ENI == "" && e == s.inst.Primary() {
		return vpc.ENIStatus{}, errors.New("there is only the primary ENI; name it to detach it")
	}
	switch {
	case r.LinkOnly:
		err = e.Unplug(ctx)
	case r.MetadataOnly:
		e.Withdraw(r.Linger)
	default:
		err = e.DetachLingering(ctx, r.Linger)
	}
	if err != nil {
		return vpc.ENIStatus{}, err
	}
	status, err := e.Status(ctx)
	if err == nil && r.Delete {
		err = e.Delete(ctx)
	}
	return status, err
}

func (s *server) change(ctx context.Context, r changeRequest) (changeReply, error) {
	var reply changeReply
	e, err := s.eni(r.ENI)
	if err != nil {
		return reply, err
	}
	var prefixes4, prefixes6 = splitPrefixes(r.Prefixes)
	if !r.assign {
		var errs []error
		if len(r.IPv4) > 0 {
			errs = append(errs, e.UnassignIPv4(ctx, r.IPv4...))
		}
		if len(r.IPv6) > 0 {
			errs = append(errs, e.UnassignIPv6(ctx, r.IPv6...))
		}
		if len(r.Prefixes) > 0 {
			errs = append(errs, e.UnassignPrefix(ctx, r.Prefixes...))
		}
		return changeReply{Addrs: append(r.IPv4, r.IPv6...), Prefixes: r.Prefixes}, errors.Join(errs...)
	}
	return reply, errors.Join(
		assign(ctx, r.AnyIPv4, r.IPv4, &reply.Addrs, e.AssignIPv4),
		assign(ctx, r.AnyIPv6, r.IPv6, &reply.Addrs, e.AssignIPv6),
		assign(ctx, r.AnyPrefixV4, prefixes4, &reply.Prefixes, e.AssignPrefixV4),
		assign(ctx, r.AnyPrefixV6, prefixes6, &reply.Prefixes, e.AssignPrefixV6),
	)
}

// assign assigns the given addresses and prefixes, or a free one if the request asks
// for it.
func assign[T any](ctx context.Context, one bool, named []T, added *[]T, f func(context.Context, ...T) ([]T, error)) error {
	if !one && len(named) == 0 {
		return nil
	}
	list, err := f(ctx, named...)
	*added = append(*added, list...)
	return err
}

func (s *server) fault(_ context.Context, r faultRequest) (faultReply, error) {
	m := s.inst.Metadata()
	var reply faultReply
	if r.ClearAll {
		m.ClearFaults()
		m.ClearOverride()
	}
	for _, id := range r.Clear {
		if !m.ClearFault(id) {
			return reply, fmt.Errorf("there is no fault %d", id)
		}
	}
	if len(r.ClearOverride) > 0 {
		m.ClearOverride(r.ClearOverride...)
	}
	for key, text := range r.Override {
		m.Override(key, text)
	}
	if r.RevokeTokens {
		m.RevokeTokens()
	}
	if r.Reveal != "" {
		e, err := s.eni(r.Reveal)
		if err != nil {
			return reply, err
		}
		e.Reveal(r.RevealKeys...)
	}
	if r.ResetLog {
		m.ResetRequests()
	}
	if r.Add != nil {
		id, err := m.AddFault(*r.Add)
		if err != nil {
			return reply, err
		}
		reply.ID = id
	}
	reply.Faults = m.Faults()
	return reply, nil
}

func (s *server) set(_ context.Context, r setRequest) (struct{}, error) {
	b, err := change(s.vpc.Behaviour(), r.Settings)
	if err == nil {
		err = s.vpc.SetBehaviour(b)
	}
	return struct{}{}, err
}

func (s *server) carrier(ctx context.Context, r carrierRequest) (struct{}, error) {
	e, err := s.eni(r.ENI)
	switch {
	case err != nil:
	case r.For > 0:
		err = e.Blip(ctx, r.For)
	default:
		err = e.SetCarrier(r.On)
	}
	return struct{}{}, err
}

func (s *server) mute(_ context.Context, r muteRequest) (struct{}, error) {
	sn := s.vpc.Subnet(r.Subnet)
	if sn == nil {
		return struct{}{}, fmt.Errorf("there is no subnet %q", r.Subnet)
	}
	if r.Unmute {
		sn.Unmute(r.Services...)
	} else {
		sn.Mute(r.Services...)
	}
	return struct{}{}, nil
}

func (s *server) power(ctx context.Context, r powerRequest) (struct{}, error) {
	var err error
	switch r.Action {
	case "boot":
		err = s.inst.Boot(ctx)
	case "shutdown":
		err = s.inst.Shutdown(ctx)
	case "reboot":
		err = s.inst.Reboot(ctx)
	case "kill":
		err = s.inst.Kill(ctx)
	default:
		err = fmt.Errorf("unknown action %q", r.Action)
	}
	return struct{}{}, err
}
