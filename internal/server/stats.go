package server

import "sync/atomic"

// Stats are the counters of a server. Any goroutine may read them while
// the server runs.
type Stats struct {
	Connections atomic.Int64  // open now
	Accepted    atomic.Uint64 // connections so far
	Messages    atomic.Uint64 // received: chunks of a stream, messages of the other types
	Bytes       atomic.Uint64 // received
	Waiting     atomic.Int64  // replies that datagram clients have not taken yet
	Dropped     atomic.Uint64 // waiting replies that were dropped
	refused     [Causes]atomic.Uint64
}

// Refuse counts n more for a cause, and returns the new count.
func (s *Stats) Refuse(c Cause, n int) uint64 { return s.refused[c].Add(uint64(n)) }

// Refused returns how many clients and messages were not served for a cause.
func (s *Stats) Refused(c Cause) uint64 { return s.refused[c].Load() }

// A Cause is the reason why a client or message was not served.
type Cause int

// The Causes. CauseSystem is not the fault of a client.
const (
	CauseSystem          Cause = iota // the system lacks a resource
	CauseUser                         // its user is not allowed
	CauseConnections                  // too many are open
	CauseUserConnections              // too many of this user are open
	CauseIdle                         // sent nothing for too long
	CauseUnread                       // did not read for too long
	CauseDescriptors                  // sent descriptors, which were not requested
	CauseTruncated                    // sent a message that is too large
	CauseNameless                     // sent a datagram that cannot be answered
	CauseRequest                      // sent an invalid request to a files: socket
	Causes                            // the number of causes
)

func (c Cause) String() string {
	return [...]string{"system", "user", "connections", "user_connections", "idle", "unread", "descriptors", "truncated", "nameless", "request"}[c]
}
