package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// nextHopSize is the size of struct nhmsg of linux/nexthop.h.
const nextHopSize = 8

// NextHops counts the next hop objects of this network namespace that are not from networkd:
// from 257 on networkd creates one for each IPv6 router, unless it leaves next hops to others.
func NextHops() (int, error) {
	dumper, err := newDumper()
	if err != nil {
		return 0, err
	}
	defer dumper.close()
	count := 0
	err = dumper.dump(unix.RTM_GETNEXTHOP, make([]byte, nextHopSize), func() { count = 0 }, func(item []byte) {
		if len(item) >= nextHopSize && item[2] != ProtocolRA {
			count++
		}
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil // before Linux 5.3
	}
	if err != nil {
		return 0, fmt.Errorf("listing next hops: %w", err)
	}
	return count, nil
}
