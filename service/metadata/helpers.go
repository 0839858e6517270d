package metadata

import (
	"sync"
	"sync/atomic"
	"time"
)

// helpers run functions beside their caller. One that has nothing to do waits for more: a
// new goroutine's stack would be copied several times on the way down to the request.
type helpers struct {
	work chan func()
	idle atomic.Int32
	mu   sync.Mutex // guards stop
	stop chan struct{}
}

func (h *helpers) run(f func()) {
	select {
	case h.work <- f:
	default:
		h.mu.Lock()
		stop := h.stop
		h.mu.Unlock()
		go h.help(f, stop)
	}
}

// help runs f and what comes after it, until nothing has come for as long as a connection
// is kept.
func (h *helpers) help(f func(), stop <-chan struct{}) {
	timer := time.NewTimer(idleTime)
	defer timer.Stop()
	for {
		f()
		if h.idle.Add(1) > maxIdle {
			h.idle.Add(-1)
			return
		}
		timer.Reset(idleTime)
		select {
		case f = <-h.work:
			h.idle.Add(-1)
			continue
		case <-timer.C:
		case <-stop:
		}
		h.idle.Add(-1)
		return
	}
}

// dismiss ends those that have nothing to do.
func (h *helpers) dismiss() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.stop)
	h.stop = make(chan struct{})
}
