package main

import (
	"context"
	"os/exec"
	"strconv"
	"time"

	"ec2netd/service/state"
)

// journalTime bounds the search for lines; journals can be large.
const journalTime = 5 * time.Second

// journalArgs make journalctl show the last lines of ec2netd about an ENI since the boot
// (I1): each has the field ENI or, while that was not known, MAC.
func journalArgs(e *state.Interface, most int) []string {
	args := []string{"--quiet", "--no-pager", "--boot", "--lines=" + strconv.Itoa(most), "--output=short"}
	const unit = "_SYSTEMD_UNIT=ec2netd.service"
	args = append(args, unit, "MAC="+e.MAC)
	if e.ENIID != "" {
		args = append(args, "+", unit, "ENI="+e.ENIID)
	}
	return args
}

// journal returns what ec2netd logged last about an ENI, as journalctl prints it. It is
// empty where there is nothing, or nothing that the caller may read.
func journal(ctx context.Context, e *state.Interface, most int) string {
	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", journalArgs(e, most)...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}
