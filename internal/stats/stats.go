// Package stats is what a server counts.
package stats

import "sync/atomic"

// A Server is what one counts. Any goroutine may read it while the server runs.
type Server struct {
	Connections atomic.Int64  // open now
	Accepted    atomic.Uint64 // connections so far
	Messages    atomic.Uint64 // received: of a stream chunks, of the other types messages
	Bytes       atomic.Uint64 // received
	Waiting     atomic.Int64  // replies that datagram clients have not taken yet
	Dropped     atomic.Uint64 // such replies that were given up
	refused     [Causes]atomic.Uint64
}

// Refuse counts n more that were refused, and returns how many were by now.
func (s *Server) Refuse(c Cause, n int) uint64 { return s.refused[c].Add(uint64(n)) }

// Refused returns how many clients and messages were turned away for a cause.
func (s *Server) Refused(c Cause) uint64 { return s.refused[c].Load() }

// A Cause is why something was not served.
type Cause int

// The Causes. Not all are somebody's fault.
const (
	System          Cause = iota // the system lacks something; nobody is to blame
	User                         // its user may not
	Connections                  // too many are open
	UserConnections              // too many of this user are open
	Idle                         // said nothing for too long
	Unread                       // did not read for too long
	Descriptors                  // sent descriptors, which nobody asked for
	Truncated                    // sent a message that is too large
	Nameless                     // sent a datagram that cannot be answered
	Request                      // asked a files: socket for what it does not do
	Causes                       // how many there are
)

func (c Cause) String() string {
	return [...]string{"system", "user", "connections", "user_connections", "idle", "unread", "descriptors", "truncated", "nameless", "request"}[c]
}
