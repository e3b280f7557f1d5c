// Package stats holds a server's counters.
package stats

import "sync/atomic"

// A Server holds the counters of one server. Any goroutine may read them while
// the server runs.
type Server struct {
	Connections atomic.Int64  // open now
	Accepted    atomic.Uint64 // connections so far
	Messages    atomic.Uint64 // received: chunks of a stream, messages of the other types
	Bytes       atomic.Uint64 // received
	Waiting     atomic.Int64  // replies that datagram clients have not taken yet
	Dropped     atomic.Uint64 // waiting replies that were dropped
	refused     [Causes]atomic.Uint64
}

// Refuse counts n more for a cause, and returns the new count.
func (s *Server) Refuse(c Cause, n int) uint64 { return s.refused[c].Add(uint64(n)) }

// Refused returns how many clients and messages were not served for a cause.
func (s *Server) Refused(c Cause) uint64 { return s.refused[c].Load() }

// A Cause is the reason why a client or message was not served.
type Cause int

// The Causes. System is not the fault of a client.
const (
	System          Cause = iota // the system lacks a resource
	User                         // its user is not allowed
	Connections                  // too many are open
	UserConnections              // too many of this user are open
	Idle                         // sent nothing for too long
	Unread                       // did not read for too long
	Descriptors                  // sent descriptors, which were not requested
	Truncated                    // sent a message that is too large
	Nameless                     // sent a datagram that cannot be answered
	Request                      // sent an invalid request to a files: socket
	Causes                       // the number of causes
)

func (c Cause) String() string {
	return [...]string{"system", "user", "connections", "user_connections", "idle", "unread", "descriptors", "truncated", "nameless", "request"}[c]
}
