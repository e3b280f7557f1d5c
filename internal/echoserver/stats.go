package echoserver

import (
	"iter"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
)

// Stats are what a server counts. Any goroutine may read them while it runs.
type Stats struct {
	Connections atomic.Int64  // open now
	Accepted    atomic.Uint64 // connections so far
	Messages    atomic.Uint64 // received: of a stream chunks, of the other types messages
	Bytes       atomic.Uint64 // received
	Waiting     atomic.Int64  // replies that datagram clients have not taken yet
	Dropped     atomic.Uint64 // such replies that were given up
	refused     [causes]atomic.Uint64
}

// Refuse counts n more that were refused, and returns how many were by now.
func (s *Stats) Refuse(c Cause, n int) uint64 { return s.refused[c].Add(uint64(n)) }

// Refused yields how many clients and messages were turned away, by cause.
func (s *Stats) Refused() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for c := range s.refused {
			if !yield(Cause(c).String(), s.refused[c].Load()) {
				return
			}
		}
	}
}

// A Cause is why something was not served.
type Cause int

// The causes. Not all are somebody's fault.
const (
	CauseSystem          Cause = iota // the system lacks something; nobody is to blame
	CauseUser                         // its user may not
	CauseConnections                  // too many are open
	CauseUserConnections              // too many of this user are open
	CauseIdle                         // said nothing for too long
	CauseUnread                       // did not read for too long
	CauseDescriptors                  // sent descriptors, which nobody asked for
	CauseTruncated                    // sent a message that is too large
	CauseNameless                     // sent a datagram that cannot be answered
	CauseRequest                      // asked a files: socket for what it does not do
	causes
)

func (c Cause) String() string {
	return [...]string{"system", "user", "connections", "user_connections", "idle", "unread", "descriptors", "truncated", "nameless", "request"}[c]
}

// refuse counts n that are not served, and is the event that says so.
func (s *server) refuse(c Cause, n int) *zerolog.Event {
	return s.warn[c].Warn().Stringer("cause", c).Uint64("refused", s.config.Stats.Refuse(c, n))
}

// opened counts n more connections that are open.
func (s *server) opened(n int) {
	s.open += n
	s.config.Stats.Connections.Add(int64(n))
}

// count counts a connection, and returns whose it is, -1 where that is not known.
func (s *server) count(cred *unix.Ucred) (uid int64) {
	s.config.Stats.Accepted.Add(1)
	s.opened(1)
	if cred == nil {
		return -1
	}
	s.perUser[cred.Uid]++
	return int64(cred.Uid)
}

// forgetUser counts the end of a connection of a user, -1 where it is not known.
func (s *server) forgetUser(uid int64) {
	s.opened(-1)
	if uid < 0 {
		return
	}
	if s.perUser[uint32(uid)]--; s.perUser[uint32(uid)] == 0 {
		delete(s.perUser, uint32(uid))
	}
}

// endings are connections that other goroutines have served and closed, by
// their users. The loop's goroutine takes note of them.
type endings struct {
	mu     sync.Mutex
	users  []int64
	closed bool
	some   atomic.Bool // there are users: the loop looks at every turn
}

func (e *endings) add(l *loop.Loop, uid int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.users = append(e.users, uid)
		e.some.Store(true)
		l.Interrupt()
	}
}

func (e *endings) each(note func(uid int64)) {
	if !e.some.Load() {
		return
	}
	e.mu.Lock()
	users := e.users
	e.users = nil
	e.some.Store(false)
	e.mu.Unlock()
	for _, uid := range users {
		note(uid)
	}
}

func (e *endings) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
}
