package kernel

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// anyLink stands for a change that can affect any link: that of a policy rule, or of a route over
// several links.
const anyLink = 0

// watchRemovals sends the index of the link of each removed route, until done is closed. It sends
// anyLink for a removed policy rule, and for each change of a rule that inverts its selector, like
// that of a VPN (B10, F13). A routing daemon that adds and removes 10,000 routes wakes nobody: the
// kernel only passes on routes that networkd can have created.
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

// Offsets in a message of rtnetlink: in struct nlmsghdr, and behind it in struct rtmsg.
const (
	typeAt, flagsAt      = 4, 6
	lengthAt, protocolAt = unix.SizeofNlMsghdr + 1, unix.SizeofNlMsghdr + 5
	ruleFlagsAt          = unix.SizeofNlMsghdr + 8 // of struct fib_rule_hdr
)

// removals is the filter of the socket (classic BPF). It passes policy rules that were removed or
// that invert their selector, removed routes of networkd's protocols, and default routes that
// replace one.
func removals() []unix.SockFilter {
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: at}
	}
	// jump is the number of instructions to skip, depending on whether the loaded value equals the
	// number.
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

// loaded returns the value that the filter loads for a number in the kernel's byte order.
func loaded(number uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, number)))
}

// loadedWord returns the same for a number of 32 bits.
func loadedWord(number uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, number))
}

// inverted reports whether a struct fib_rule_hdr belongs to a rule that inverts its selector.
func inverted(item []byte) bool {
	return len(item) >= ruleSize && binary.NativeEndian.Uint32(item[8:])&invert != 0
}

// removalOf returns the link of a route that was removed or replaced, or anyLink for a policy rule
// of networkd, a rule that inverts its selector, or a route over several links. It returns false
// for everything else.
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
		// The replaced route may have belonged to any link.
		return anyLink, true
	}
	return 0, false
}
