package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/vpc"
)

// client talks to the process of a lab.
type client struct {
	name *string
}

func labDir(name string) string { return filepath.Join(vpc.DefaultStateDir, name) }

// call sends one request.
func (c *client) call(ctx context.Context, what string, request, reply any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	path := filepath.Join(labDir(*c.name), socketName)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vpclab/"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no lab named %s; start one with: vpclab up", *c.name)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("the lab %s has ended without cleaning up; remove it with: vpclab down --all-stale", *c.name)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the lab %s belongs to root: run vpclab as root", *c.name)
	case err != nil:
		return fmt.Errorf("talking to the lab %s: %w", *c.name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e errorReply
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == "" {
			return fmt.Errorf("the lab %s answered %s", *c.name, resp.Status)
		}
		return errors.New(e.Error)
	}
	if reply == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(reply); err != nil {
		return fmt.Errorf("reading the answer of the lab %s: %w", *c.name, err)
	}
	return nil
}

// instance returns the state of the lab's instance.
func (c *client) instance(ctx context.Context) (vpc.InstanceStatus, error) {
	var s vpc.Status
	if err := c.call(ctx, "status", struct{}{}, &s); err != nil {
		return vpc.InstanceStatus{}, err
	}
	if len(s.Instances) == 0 {
		return vpc.InstanceStatus{}, fmt.Errorf("the lab %s has no instance", *c.name)
	}
	return s.Instances[0], nil
}
