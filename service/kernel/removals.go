package kernel

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// anyLink stands for a change that may be of any link: that of a policy rule, or of a route
// over several links.
const anyLink = 0

// watchRemovals sends the index of the link of each route that was removed, or anyLink for a
// policy rule, and for one that holds for all packets but some, as a VPN has, also when it is
// added, until done is closed (B10, F13). A host whose routing daemon churns 10,000 routes
// wakes nobody: the kernel passes on only what networkd can have made.
func watchRemovals(done <-chan struct{}, failed func(error)) (<-chan int, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribing to removed routes and rules: %w", err)
	}
	filter := removals()
	err = unix.SetsockoptSockFprog(socket.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err == nil {
		err = unix.SetsockoptInt(socket.GetFd(), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("filtering removed routes and rules: %w", err)
	}
	return follow(socket, done, failed, func(message *syscall.NetlinkMessage) (int, bool) {
		return removalOf(message.Header.Type, message.Data)
	}), nil
}

// Places in a message of rtnetlink: those of struct nlmsghdr, and behind it those of struct
// rtmsg.
const (
	typeAt, flagsAt      = 4, 6
	lengthAt, protocolAt = unix.SizeofNlMsghdr + 1, unix.SizeofNlMsghdr + 5
	ruleFlagsAt          = unix.SizeofNlMsghdr + 8 // of struct fib_rule_hdr
)

// removals is the filter of the socket (classic BPF). It lets pass policy rules that were
// removed or hold for all packets but some, routes of networkd's protocols that were removed, and
// default routes that replace one.
func removals() []unix.SockFilter {
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: at}
	}
	// jump is by how many instructions, if what was loaded is the number, and if it is not.
	jump := func(how uint16, number uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | how, K: number, Jt: yes, Jf: no}
	}
	return []unix.SockFilter{
		load(unix.BPF_H, typeAt),
		jump(unix.BPF_JEQ, loaded(unix.RTM_DELRULE), 14, 0),
		jump(unix.BPF_JEQ, loaded(unix.RTM_DELROUTE), 8, 0),
		jump(unix.BPF_JEQ, loaded(unix.RTM_NEWROUTE), 3, 0),
		jump(unix.BPF_JEQ, loaded(unix.RTM_NEWRULE), 0, 10),
		load(unix.BPF_W, ruleFlagsAt),
		jump(unix.BPF_JSET, loadedWord(invert), 9, 8),
		load(unix.BPF_H, flagsAt),
		jump(unix.BPF_JSET, loaded(unix.NLM_F_REPLACE), 0, 6),
		load(unix.BPF_B, lengthAt),
		jump(unix.BPF_JEQ, 0, 5, 4),
		// A route was removed.
		load(unix.BPF_B, protocolAt),
		jump(unix.BPF_JEQ, ProtocolStatic, 3, 0),
		jump(unix.BPF_JEQ, ProtocolRA, 2, 0),
		jump(unix.BPF_JEQ, ProtocolDHCP, 1, 0),
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
	}
}

// loaded is what the filter has after it has loaded a number of the kernel's byte order.
func loaded(number uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, number)))
}

// loadedWord is the same of a number of 32 bits.
func loadedWord(number uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, number))
}

// inverted reports whether a struct fib_rule_hdr is of a rule that holds for all packets but some.
func inverted(item []byte) bool {
	return len(item) >= ruleSize && binary.NativeEndian.Uint32(item[8:])&invert != 0
}

// removalOf returns the link of a route that was removed or replaced, or anyLink for a policy
// rule of networkd's, one that holds for all packets but some, or a route over several links. It
// is false for all else.
func removalOf(kind uint16, item []byte) (index int, ok bool) {
	switch kind {
	case unix.RTM_NEWRULE:
		return anyLink, inverted(item)
	case unix.RTM_DELRULE:
		found := inverted(item)
		attributes(item, ruleSize, func(kind uint16, value []byte) {
			found = found || (kind == unix.FRA_PROTOCOL && len(value) > 0 && value[0] == ProtocolStatic)
		})
		return anyLink, found
	case unix.RTM_DELROUTE:
		attributes(item, unix.SizeofRtMsg, func(kind uint16, value []byte) {
			if kind == unix.RTA_OIF {
				index = number(value)
			}
		})
		return index, true
	case unix.RTM_NEWROUTE:
		// The route that was replaced may have been that of any link.
		return anyLink, true
	}
	return 0, false
}
