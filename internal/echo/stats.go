package echo

import (
	"iter"
	"sync/atomic"

	"github.com/rs/zerolog"
)

// Stats are what a server counts. Any goroutine may read them while it runs.
type Stats struct {
	Connections atomic.Int64  // open now
	Accepted    atomic.Uint64 // connections so far
	Messages    atomic.Uint64 // received: of a stream chunks, of the other types messages
	Bytes       atomic.Uint64 // received
	Waiting     atomic.Int64  // replies that datagram clients have not taken yet
	refused     [causes]atomic.Uint64
}

// Refused yields how many clients, messages or replies were turned away, by
// cause.
func (s *Stats) Refused() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for c := range s.refused {
			if !yield(cause(c).String(), s.refused[c].Load()) {
				return
			}
		}
	}
}

// A cause is why something was not served.
type cause int

const (
	causeSystem          cause = iota // the system lacks something; nobody is to blame
	causeUser                         // its user may not
	causeConnections                  // too many are open
	causeUserConnections              // too many of this user are open
	causeIdle                         // said nothing for too long
	causeUnread                       // did not read for too long, or has too many replies waiting
	causeDescriptors                  // sent descriptors, which nobody asked for
	causeTruncated                    // sent a message that is too large
	causeNameless                     // sent a datagram that cannot be answered
	causes
)

func (c cause) String() string {
	return [...]string{"system", "user", "connections", "user_connections", "idle", "unread", "descriptors", "truncated", "nameless"}[c]
}

// refuse counts n that are not served, and is the event that says so.
func (s *server) refuse(c cause, n int) *zerolog.Event {
	refused := s.Stats.refused[c].Add(uint64(n))
	return s.warn[c].Warn().Stringer("cause", c).Uint64("refused", refused)
}
