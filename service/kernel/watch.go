package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveBuffer is the buffer size of the subscriptions. If an event does not fit, the kernel
// drops it and reports that; then the daemon looks at everything again.
const receiveBuffer = 1 << 20

// Watcher reports when links or their addresses may have changed. It is a task of the daemon.
type Watcher struct {
	drivers atomic.Pointer[[]string]
	log     *slog.Logger
	changed chan struct{}
	ready   chan struct{}
	// relist: the drivers have changed.
	relist chan struct{}
}

// NewWatcher returns a watcher of links with one of the given drivers.
func NewWatcher(drivers []string, log *slog.Logger) *Watcher {
	w := &Watcher{log: log, changed: make(chan struct{}, 1), ready: make(chan struct{}), relist: make(chan struct{}, 1)}
	w.SetDrivers(drivers)
	return w
}

// SetDrivers changes the drivers for later events. It may be called at any time.
func (w *Watcher) SetDrivers(drivers []string) {
	w.drivers.Store(&drivers)
	select {
	case w.relist <- struct{}{}:
	default:
	}
}

// String returns the name of the task.
func (w *Watcher) String() string { return "link watcher" }

// Changed returns a channel whose values carry no data: they only request another look. Several
// changes may cause one value.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Ready is closed when the watcher no longer misses any event.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Run watches until ctx ends. It renews a subscription that breaks.
func (w *Watcher) Run(ctx context.Context) error {
	first := true
	for {
		err := w.subscribe(ctx, func() {
			if first {
				close(w.ready)
				first = false
			}
			w.poke()
		})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the daemon is ending, which is no error
		}
		w.log.Debug("subscribing to rtnetlink again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// subscribe watches until a subscription breaks or ctx ends, and calls ready once both
// subscriptions work.
func (w *Watcher) subscribe(ctx context.Context, ready func()) error {
	done := make(chan struct{})
	links := make(chan netlink.LinkUpdate, 64)
	addresses := make(chan netlink.AddrUpdate, 64)
	defer func() {
		close(done)
		// The library's goroutine may be blocked in a send, so this lets it end.
		go func() {
			for range links {
			}
		}()
		go func() {
			for range addresses {
			}
		}()
	}()
	failed := func(err error) { w.log.Debug("rtnetlink subscription", "error", err) }
	ipv6, err := watchIPv6(done, failed)
	if err != nil {
		close(links)
		close(addresses)
		return err
	}
	removals, err := watchRemovals(done, failed)
	if err != nil {
		close(links)
		close(addresses)
		return err
	}
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{
		ErrorCallback: failed, ReceiveBufferSize: receiveBuffer,
	}); err != nil {
		close(links)
		close(addresses)
		return fmt.Errorf("subscribing to link events: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addresses, done, netlink.AddrSubscribeOptions{
		ErrorCallback: failed, ReceiveBufferSize: receiveBuffer,
	}); err != nil {
		close(addresses)
		return fmt.Errorf("subscribing to address events: %w", err)
	}
	observer, err := NewObserver(nil)
	if err != nil {
		return err
	}
	observer.drivers = &w.drivers
	defer observer.Close()
	// The last appearance of the links: the kernel also reports changes that do not matter here
	// (statistics, other links).
	seen := make(map[int]appearance)
	// Flags of the reported addresses: each router advertisement and each renewal of a lease
	// reports its addresses again.
	told := make(map[linkAddress]int)
	list := func() {
		if found, err := observer.handle.LinkList(); err == nil {
			for _, link := range found {
				if _, ok := observer.driver(link); ok {
					seen[link.Attrs().Index] = appearanceOf(link.Attrs())
				}
			}
		}
	}
	list()
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.relist:
			list()
		case update, ok := <-links:
			if !ok {
				return fmt.Errorf("the link subscription ended")
			}
			attrs := update.Attrs()
			index := attrs.Index
			if update.Header.Type == unix.RTM_DELLINK {
				delete(observer.known, index)
				maps.DeleteFunc(told, func(a linkAddress, _ int) bool { return a.link == index })
				if _, ok := seen[index]; ok {
					delete(seen, index)
					w.poke()
				}
				continue
			}
			if _, ok := observer.driver(update.Link); !ok {
				continue
			}
			if now := appearanceOf(attrs); !now.equal(seen[index]) {
				seen[index] = now
				w.poke()
			}
		case index, ok := <-ipv6:
			if !ok {
				return fmt.Errorf("the IPv6 subscription ended")
			}
			if _, ok := seen[index]; ok {
				w.poke()
			}
		case index, ok := <-removals:
			if !ok {
				return fmt.Errorf("the subscription to removals ended")
			}
			if _, ok := seen[index]; ok || index == anyLink {
				w.poke()
			}
		case update, ok := <-addresses:
			if !ok {
				return fmt.Errorf("the address subscription ended")
			}
			if _, ok := seen[update.LinkIndex]; !ok {
				continue
			}
			prefix, ok := prefixOf(&update.LinkAddress)
			address := linkAddress{update.LinkIndex, prefix}
			switch flags, known := told[address]; {
			case !ok:
				w.poke()
			case !update.NewAddr:
				delete(told, address)
				w.poke()
			case !known || flags != update.Flags:
				told[address] = update.Flags
				w.poke()
			}
		}
	}
}

// watchIPv6 sends the index of each link whose IPv6 was switched on or has changed, until done
// is closed. The kernel reports that in a separate group (measured on 6.x: on disable_ipv6=0,
// even if no address is added, because networkd configures the link without a link-local
// address). It reports disable_ipv6=1 by the removal of addresses.
func watchIPv6(done <-chan struct{}, failed func(error)) (<-chan int, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_IFINFO)
	if err != nil {
		return nil, fmt.Errorf("subscribing to IPv6 events: %w", err)
	}
	return follow(socket, done, failed, func(message *syscall.NetlinkMessage) (int, bool) {
		if message.Header.Type != unix.RTM_NEWLINK || len(message.Data) < unix.SizeofIfInfomsg {
			return 0, false
		}
		return int(binary.NativeEndian.Uint32(message.Data[4:])), true
	}), nil
}

// follow passes the kernel's messages on a subscription to a function, which returns the index
// of a link, and sends that, until done is closed. It then closes the socket.
func follow(socket *nl.NetlinkSocket, done <-chan struct{}, failed func(error), of func(*syscall.NetlinkMessage) (index int, ok bool)) <-chan int {
	indexes := make(chan int, 64)
	go func() {
		<-done
		socket.Close()
	}()
	go func() {
		defer close(indexes)
		for {
			messages, from, err := socket.Receive()
			if err != nil {
				failed(err)
				return
			}
			if from.Pid != nl.PidKernel {
				continue
			}
			for i := range messages {
				index, ok := of(&messages[i])
				if !ok {
					continue
				}
				select {
				case indexes <- index:
				case <-done:
					return
				}
			}
		}
	}()
	return indexes
}

func (w *Watcher) poke() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// linkAddress is an address on the link with an index.
type linkAddress struct {
	link   int
	prefix netip.Prefix
}

// appearance contains the properties of a link that matter.
type appearance struct {
	name, mac string
	flags     uint32
	mtu       int
	master    int
	altnames  []string
}

func appearanceOf(attrs *netlink.LinkAttrs) appearance {
	return appearance{
		name:     attrs.Name,
		mac:      attrs.HardwareAddr.String(),
		flags:    attrs.RawFlags & (unix.IFF_UP | unix.IFF_LOWER_UP),
		mtu:      attrs.MTU,
		master:   attrs.MasterIndex,
		altnames: attrs.AltNames,
	}
}

func (a appearance) equal(b appearance) bool {
	return a.name == b.name && a.mac == b.mac && a.flags == b.flags && a.mtu == b.mtu && a.master == b.master && slices.Equal(a.altnames, b.altnames)
}
