package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumper requests lists from rtnetlink(7). The library can do this too, but without the
// kernel's filter by link for addresses, with 64 KiB for each part of an answer, and with
// about ten allocations per item: with the library one read of 15 links of 50 addresses
// took 195000 allocations of 22 MB, and with dumper it takes 1100 of 0.5 MB
// (decisions/005).
type dumper struct {
	fd       int
	sequence uint32
	request  []byte
	answer   []byte
}

// Sizes of rtnetlink's messages. The kernel fills at most 32 KiB at a time.
const (
	answerSize    = 64 << 10
	attributeSize = 4
	ruleSize      = 12 // struct fib_rule_hdr
)

func newDumper() (*dumper, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	d := &dumper{fd: fd, answer: make([]byte, answerSize)}
	// With this option the kernel applies the filter of a dump, so that many routes and
	// addresses of other links cost nothing.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		d.close()
		return nil, fmt.Errorf("asking rtnetlink for strict checking (Linux 4.20 or later): %w", err)
	}
	// The kernel answers at once; the timeout only guards against a hang.
	err = errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	if err != nil {
		d.close()
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	return d, nil
}

func (d *dumper) close() { _ = unix.Close(d.fd) }

// dumping is the function that requests a list: [dumper.dump], or a fake in a test.
type dumping func(kind uint16, header []byte, start func(), each func(item []byte)) error

// dump sends a request and calls the function for each item of the answer. The item
// belongs to the dumper and may only be read until the function returns. If a change in
// the kernel interrupts a dump, it is repeated.
func (d *dumper) dump(kind uint16, header []byte, start func(), each func(item []byte)) error {
	var err error
	for range 10 {
		start()
		if err = d.once(kind, unix.NLM_F_DUMP, header, each); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

// get requests one object. The acknowledgement ends the answer.
func (d *dumper) get(kind uint16, header []byte, each func(item []byte)) error {
	return d.once(kind, unix.NLM_F_ACK, header, each)
}

func (d *dumper) once(kind, how uint16, header []byte, each func(item []byte)) error {
	d.sequence++
	d.request = binary.NativeEndian.AppendUint32(d.request[:0], uint32(unix.SizeofNlMsghdr+len(header)))
	d.request = binary.NativeEndian.AppendUint16(d.request, kind)
	d.request = binary.NativeEndian.AppendUint16(d.request, unix.NLM_F_REQUEST|how)
	d.request = binary.NativeEndian.AppendUint32(d.request, d.sequence)
	d.request = binary.NativeEndian.AppendUint32(d.request, 0)
	d.request = append(d.request, header...)
	if err := ignoringInterrupts(func() error {
		return unix.Sendto(d.fd, d.request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return err
	}
	interrupted := false
	for {
		size := 0
		var from unix.Sockaddr
		if err := ignoringInterrupts(func() (err error) {
			size, from, err = unix.Recvfrom(d.fd, d.answer, unix.MSG_TRUNC)
			return err
		}); err != nil {
			return err
		}
		if size > len(d.answer) {
			return unix.EMSGSIZE
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not from the kernel
		}
		for rest := d.answer[:size]; len(rest) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(rest))
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				return unix.EBADMSG
			}
			item, kind, flags := rest[unix.SizeofNlMsghdr:length], binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint16(rest[6:])
			sequence := binary.NativeEndian.Uint32(rest[8:])
			rest = rest[min(aligned(length), len(rest)):]
			if sequence != d.sequence {
				continue // from an abandoned dump
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(item) >= 4 {
					if failure := int32(binary.NativeEndian.Uint32(item)); failure != 0 {
						return unix.Errno(-failure)
					}
				}
				if interrupted {
					return netlink.ErrDumpInterrupted
				}
				return nil
			default:
				each(item)
			}
		}
	}
}

func ignoringInterrupts(do func() error) error {
	for {
		if err := do(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// aligned returns a length including padding (NLMSG_ALIGN, RTA_ALIGN).
func aligned(length int) int { return (length + 3) &^ 3 }

// attributes iterates over the attributes that follow the header of an item.
func attributes(item []byte, header int, each func(kind uint16, value []byte)) {
	if len(item) < header {
		return
	}
	for rest := item[aligned(header):]; len(rest) >= attributeSize; {
		length := int(binary.NativeEndian.Uint16(rest))
		if length < attributeSize || length > len(rest) {
			return
		}
		each(binary.NativeEndian.Uint16(rest[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), rest[attributeSize:length])
		rest = rest[min(aligned(length), len(rest)):]
	}
}

// number returns the value of an attribute of 32 bits.
func number(value []byte) int {
	if len(value) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(value))
}

// prefixed returns an address with a prefix length, the zero Prefix if there is none.
func prefixed(value []byte, bits int) netip.Prefix {
	address, ok := netip.AddrFromSlice(value)
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(address, bits)
}
