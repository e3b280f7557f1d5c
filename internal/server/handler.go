package server

import (
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Handler decides what happens to the clients that the server has accepted.
// Its methods are called on the loop's goroutine and must not block. A handler
// knows its server, and the server knows no handler.
type Handler interface {
	// Serve takes over a connection, until [Conn.Close], [Conn.End] or [Conn.Done].
	Serve(Conn)
	// Receive handles a datagram that may be answered, or has no address. The
	// message is valid until Receive returns, and its descriptors are taken
	// over. Receive reports whether it can take another; if not, it has called
	// [Sender.Pause].
	Receive(Message) (more bool)
	// Sweep is called about once a second. now is the time since the server
	// started; stopped reports that the process was stopped meanwhile.
	Sweep(now time.Duration, stopped bool)
	Busy() int // returns how many clients without a connection wait for an answer, so that the server waits for them at its end
	Close()    // closes everything at the end; the loop is still open
}

// A Service is a socket and what serves its clients.
type Service struct {
	*addr.Socket
	Handler Handler
	Files   bool // the handler gets the descriptors that come with datagrams; otherwise such a message is dropped
	tapped  bool // see [Server.reportTaps]
}

// Services returns services of sockets that one handler serves.
func Services(h Handler, sockets ...*addr.Socket) (all []Service) {
	for _, socket := range sockets {
		all = append(all, Service{Socket: socket, Handler: h})
	}
	return all
}

// A Conn is a connection that was accepted.
type Conn struct {
	ln    *listener
	fd    int32 // 4 bytes, as a handler's struct of a connection has to be small
	level zerolog.Level
	ID    uint64
	UID   int64 // of the client; -1 if it is not known
	peer  string
}

// FD returns the connection's descriptor, which does not block.
func (c *Conn) FD() int { return int(c.fd) }

// Loop returns the loop that the connection's handler runs on.
func (c *Conn) Loop() *loop.Loop { return c.ln.server.Loop }

// Type returns the type of the socket that accepted the connection.
func (c *Conn) Type() addr.Type { return c.ln.socket.Addr.Type }

// NoRights reports that no descriptor can come along, see [sock.RefusesRights].
func (c *Conn) NoRights() bool { return c.ln.noRights }

// Peer returns the client's address, "" if it has none.
func (c *Conn) Peer() string {
	if c.peer == "" {
		return sock.PeerName(c.FD())
	}
	return c.peer
}

// Cred returns the client's credentials, nil if the kernel does not know them.
func (c *Conn) Cred() *unix.Ucred {
	if !c.Type().Unix() {
		return nil
	}
	cred, _ := sock.PeerCred(c.FD())
	return cred
}

// HealthCheck reports whether the client checks the server's health.
func (c *Conn) HealthCheck() bool {
	return c.level == zerolog.DebugLevel || !c.ln.server.logs() && isHealthCheck(c.Peer(), c.Cred())
}

// Event returns an event about this client, or nil if its level is off: info, or
// for a health check debug.
func (c *Conn) Event() *zerolog.Event {
	if c.ln.server.Log.GetLevel() > c.level {
		return nil // Escape costs time
	}
	return logtext.WithPeer(c.ln.server.Log.WithLevel(c.level).Uint64("conn", c.ID), c.Peer())
}

// TurnAway counts and logs that the server stops serving a client. The caller
// closes the connection.
func (c *Conn) TurnAway(why Cause, format string, args ...any) {
	logtext.WithPeer(c.ln.server.Refuse(why, 1).Uint64("conn", c.ID), c.Peer()).Int64("uid", c.UID).
		Msgf("disconnected a client: "+format, args...)
}

// A Message is a datagram.
type Message struct {
	Sender
	Bytes []byte
	Files []int // descriptors, which the handler takes over
}

// A Sender is a client of a datagram socket. It is valid as long as its message,
// and a [Sender.Clone] until the server ends.
type Sender struct {
	at     *datagrams
	client client
	level  zerolog.Level
}

// A SenderKey identifies a client among all others by its address and its user,
// at the socket where it sends: a name may pass from one user to another, and
// the answers have to come from that socket. A client without a name is one
// process.
type SenderKey struct {
	at     *datagrams
	client client
}

// Clone returns a sender that stays valid.
func (s Sender) Clone() Sender {
	s.client = s.client.clone()
	return s
}

// Key returns what identifies the sender.
func (s Sender) Key() SenderKey { return SenderKey{s.at, s.client} }

// Address returns the sender's address, "" if it cannot get a reply.
func (s Sender) Address() string { return s.client.address.String() }

// Named reports whether the sender has an address, so that it can get a reply.
func (s Sender) Named() bool { return s.client.address != "" }

// Cred returns the credentials of the last message, nil if the kernel has none.
func (m *Message) Cred() *unix.Ucred { return m.at.cred() }

// HealthCheck is as [Conn.HealthCheck].
func (m *Message) HealthCheck() bool {
	return m.level == zerolog.DebugLevel || !m.at.server.logs() && isHealthCheck(m.Address(), m.Cred())
}

// Event is as [Conn.Event], without the peer.
func (m *Message) Event() *zerolog.Event {
	s := m.at.server
	if s.Log.GetLevel() > m.level {
		return nil
	}
	return s.Log.WithLevel(m.level)
}

// Reply sends the client a message, or keeps the message until the client takes
// it. It takes the descriptors over.
func (s Sender) Reply(message []byte, files ...int) {
	s.at.reply(s.client, reply{message: message, files: files})
}

// Ready reports whether no reply is kept.
func (s Sender) Ready() bool { return s.at.queues[s.client] == nil }

// WhenReady makes the server call f once no reply is kept; it is not Ready now.
func (s Sender) WhenReady(f func()) { s.at.queues[s.client].ready = f }

// Close closes descriptors without waiting.
func (s Sender) Close(fds ...int) { s.at.closeFiles(int64(s.client.uid), fds...) }

// Pause stops the socket from receiving.
func (s Sender) Pause() { s.at.halt() }

// Resume continues after Pause.
func (s Sender) Resume() { s.at.resume() }
