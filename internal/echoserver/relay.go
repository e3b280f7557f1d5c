package echoserver

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/internal/transport"
)

// A Relay takes what a server receives, in place of the echo; package relay has the
// one that there is, which servers that echo do without. Its methods are called on
// the loop's goroutine and must not block.
type Relay interface {
	Begin(*loop.Loop)  // comes first
	Connection(Client) // takes a connection over
	// Message takes a message, which is valid until it returns. It reports whether
	// the relay can take another; if not, it has called s.Pause.
	Message(s Sender, message []byte) bool
	Turn() // comes at each turn of the loop
	// Sweep comes about once a second. now is the time since the server started;
	// stopped reports that the process was stopped meanwhile.
	Sweep(now time.Duration, stopped bool)
	Busy() int // how many senders wait for an answer
	End()      // closes everything; the loop is still open
}

// A Client is a connection that was accepted.
type Client struct {
	FD   int
	ID   uint64
	Type transport.Type
	Peer string      // its address; "": it has none
	Cred *unix.Ucred // nil: the kernel does not know it
	Done func()      // is to be called once the connection is closed
}

// A Sender is a client of a datagram socket.
type Sender struct {
	Key     string // that no other client has
	Address string // "": it cannot be answered
	Cred    *unix.Ucred
	Reply   func(message []byte) // sends it a message, or keeps that until the client takes it
	Ready   func() bool          // whether nothing is kept
	// Pause stops the socket from receiving, and Resume lets it go on.
	Pause, Resume func()
}

// relayed is the sender of the last message as a relay answers it.
func (d *datagrams) relayed(to client) Sender {
	return Sender{
		Key: d.socket.Addr.Path + "\x00" + string(to.address), Address: to.address.String(), Cred: d.cred(),
		Reply: func(message []byte) { d.reply(to, message) },
		Ready: func() bool { return d.queues[to] == nil },
		Pause: func() {
			d.paused = true
			d.server.loop.Watch(d.socket.FD(), 0)
		},
		Resume: func() {
			d.paused = false
			d.server.loop.Watch(d.socket.FD(), unix.EPOLLIN)
			if !d.server.drainUntil.IsZero() {
				d.drain()
			}
		},
	}
}
