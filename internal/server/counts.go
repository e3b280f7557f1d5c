package server

import (
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
)

// refuse counts n clients that are not served, and returns the event that logs
// it.
func (s *server) refuse(c Cause, n int) *zerolog.Event {
	return s.warn[c].Warn().Stringer("cause", c).Uint64("refused", s.config.Stats.Refuse(c, n))
}

// opened counts n more open connections.
func (s *server) opened(n int) {
	s.open += n
	s.config.Stats.Connections.Add(int64(n))
}

// count counts a connection, and returns its user, -1 if the user is not
// known.
func (s *server) count(cred *unix.Ucred) (uid int64) {
	s.config.Stats.Accepted.Add(1)
	s.opened(1)
	if cred == nil {
		return -1
	}
	s.perUser[cred.Uid]++
	return int64(cred.Uid)
}

// forgetUser counts the end of a connection of user uid; -1 means not known.
func (s *server) forgetUser(uid int64) {
	s.opened(-1)
	if uid < 0 {
		return
	}
	if s.perUser[uint32(uid)]--; s.perUser[uint32(uid)] == 0 {
		delete(s.perUser, uint32(uid))
	}
}

// endings are what the loop's goroutine still has to do for connections and
// descriptors that other goroutines have closed: to remove them from its counts.
type endings struct {
	mu     sync.Mutex
	notes  []func()
	closed bool
	some   atomic.Bool // there are notes: the loop looks at every turn
}

func (e *endings) add(l *loop.Loop, note func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.notes = append(e.notes, note)
		e.some.Store(true)
		l.Interrupt()
	}
}

func (e *endings) each() {
	if !e.some.Load() {
		return
	}
	e.mu.Lock()
	notes := e.notes
	e.notes = nil
	e.some.Store(false)
	e.mu.Unlock()
	for _, note := range notes {
		note()
	}
}

func (e *endings) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
}
