package server

import (
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// The limits, in all and for the descriptors of one owner, so that no owner can
// occupy all closers. Each closer that hangs costs a thread.
const (
	maxClosers = 16
	maxOwner   = 4
)

// Closers close descriptors beside the loop, on a bounded number of goroutines.
// Nothing waits for them when the process ends.
//
// close(2) can wait for another process. A Unix socket's receive queue may hold
// descriptors that a peer has sent, and the kernel closes them with the socket:
// a TCP socket with SO_LINGER waits as long as its sender chose, socket(7), and
// a file on FUSE waits for the process that serves its file system.
type Closers struct {
	log     zerolog.Logger
	mu      sync.Mutex
	running int
	owners  map[int64]int // closers that are at work for an owner
	waiting []job
	done    uint64 // jobs
	swept   uint64 // done at the last sweep
}

type job struct {
	owner int64
	fds   []int
	done  func()
}

// NewClosers returns closers that log to log if they are exhausted.
func NewClosers(log zerolog.Logger) *Closers { return &Closers{log: log, owners: map[int64]int{}} }

// Close closes descriptors that came from one owner, a user id for example, and
// then calls done on another goroutine, unless it is nil.
func (c *Closers) Close(owner int64, done func(), fds ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := job{owner, fds, done}
	if !c.mayStart(owner) {
		c.waiting = append(c.waiting, j)
		return
	}
	c.running++
	c.owners[owner]++
	go c.work(j)
}

func (c *Closers) mayStart(owner int64) bool {
	return c.running < maxClosers && c.owners[owner] < maxOwner
}

// work does a job, and further ones as long as there are any that it may do.
func (c *Closers) work(j job) {
	for more := true; more; {
		for _, fd := range j.fds {
			_ = unix.Close(fd)
		}
		if j.done != nil {
			j.done()
		}
		j, more = c.next(j.owner)
	}
}

func (c *Closers) next(owner int64) (job, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	c.running--
	if c.owners[owner]--; c.owners[owner] == 0 {
		delete(c.owners, owner)
	}
	for i, j := range c.waiting {
		if c.mayStart(j.owner) {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			c.running++
			c.owners[j.owner]++
			return j, true
		}
	}
	return job{}, false
}

// Sweep logs a warning if descriptors wait and none was closed since the last
// sweep. Call it about once a second.
func (c *Closers) Sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) > 0 && c.done == c.swept {
		n := 0
		for _, j := range c.waiting {
			n += len(j.fds)
		}
		c.log.Warn().Int("closing", c.running).Int("waiting", n).
			Msgf("%d closes hang, because a client has sent a descriptor whose close waits; %d descriptors wait to be closed", c.running, n)
	}
	c.swept = c.done
}
