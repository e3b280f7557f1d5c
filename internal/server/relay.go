package server

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/loop"
)

// A Relay gets everything that a server receives, in place of the echo.
// Package relay implements it; servers that echo do not link it. Its methods
// are called on the loop's goroutine and must not block.
type Relay interface {
	Begin(*loop.Loop)  // is called first
	Connection(Client) // takes over a connection
	// Message gets a message, which is valid until it returns, and takes over
	// its descriptors. It reports whether the relay can take another; if not,
	// it has called s.Pause.
	Message(s Sender, message []byte, files []int) bool
	Turn() // is called at each turn of the loop
	// Sweep is called about once a second. now is the time since the server
	// started; stopped reports that the process was stopped meanwhile.
	Sweep(now time.Duration, stopped bool)
	Busy() int // returns how many senders wait for an answer
	End()      // closes everything; the loop is still open
}

// A Client is a connection that was accepted.
type Client struct {
	FD   int
	ID   uint64
	Type addr.Type
	// NoRights reports that no descriptor can come along, see
	// [github.com/udsecho/udsecho/uds/sock.RefusesRights].
	NoRights bool
	Peer     string      // its address; "" if it has none
	Cred     *unix.Ucred // nil if the kernel does not know them
	// Done ends the connection once it is closed. It closes fds first, beside the
	// loop: sockets in whose queue there may be descriptors.
	Done func(fds ...int)
}

// A Sender is a client of a datagram socket.
type Sender struct {
	Key     SenderKey
	Address string // "" if it cannot get a reply
	Cred    *unix.Ucred
	// Reply sends it a message, or keeps the message until the client takes it.
	// It takes the descriptors over.
	Reply func(message []byte, files []int)
	Ready func() bool      // reports whether no message is kept
	Close func(fds ...int) // closes descriptors without waiting
	// Pause stops the socket from receiving, and Resume continues.
	Pause, Resume func()
}

// A SenderKey identifies a client among all others by its address and its user,
// at the socket where it sends: a name may pass from one user to another, and
// the answers have to come from that socket. A client without a name is one
// process.
type SenderKey struct {
	at     *datagrams
	client client
}

// relayed returns the sender of the last message in the form that a relay
// uses.
func (d *datagrams) relayed(to client) Sender {
	return Sender{
		Key: SenderKey{d, to}, Address: to.address.String(), Cred: d.cred(),
		Reply:  func(message []byte, files []int) { d.reply(to, reply{message: message, files: files}) },
		Close:  func(fds ...int) { d.closeFiles(int64(to.uid), fds...) },
		Ready:  func() bool { return d.queues[to] == nil },
		Pause:  d.halt,
		Resume: d.resume,
	}
}

func (d *datagrams) halt() {
	d.paused = true
	d.server.loop.Watch(d.socket.FD(), 0)
}

func (d *datagrams) resume() {
	if !d.paused {
		return
	}
	d.paused = false
	d.server.loop.Watch(d.socket.FD(), unix.EPOLLIN)
	if !d.server.drainUntil.IsZero() || d.retired {
		d.drain()
	}
}
