package echo

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// A Config configures a [Handler].
type Config struct {
	Chunk      int // size of one receive on a stream, in bytes
	SendBuffer int // SO_SNDBUF of connections, in bytes; 0: the system's default
	// Clients that send nothing for this long, or read nothing of what the
	// server has to send, are disconnected within two seconds more; 0: no
	// limit.
	IdleTimeout, WriteTimeout time.Duration
}

// A Handler sends back what it receives, see [server.Handler].
type Handler struct {
	config  Config
	srv     *server.Server
	streams *sock.Receiver // one receiver, shared by all stream connections
	records *sock.Receiver
	spare   [][]byte // buffers for the unsent bytes of blocked connections
	parked  []*conn  // they wait for room, see room.go
}

// New returns a handler for the clients of srv.
func New(srv *server.Server, c Config) *Handler { return &Handler{config: c, srv: srv} }

// receiver returns r, or a new one if there is none yet.
func receiver(r *sock.Receiver, size int) *sock.Receiver {
	if r == nil {
		r = sock.NewReceiver(size)
		r.TakeRights()
	}
	return r
}

// Serve serves a connection of any type.
func (h *Handler) Serve(of server.Conn) {
	c := &conn{Conn: of, echo: h, events: unix.EPOLLIN}
	if c.Type() == addr.Seqpacket {
		c.records, c.events = true, unix.EPOLLIN|unix.EPOLLRDHUP
		h.records = receiver(h.records, sock.MaxMessage())
	} else {
		h.streams = receiver(h.streams, h.config.Chunk)
	}
	c.takeBuffer()
	if err := c.Loop().Add(c.FD(), c, c.events); err != nil {
		c.turnAway(server.CauseSystem, "%v", err)
		return
	}
}

// Receive sends a message back.
func (h *Handler) Receive(m server.Message) (more bool) {
	if ev := m.Event(); ev != nil {
		logtext.WithCred(logtext.WithPeer(ev, m.Address()), m.Cred()).Int("bytes", len(m.Bytes)).Msg("received " + logtext.Quote(m.Bytes))
	}
	if len(m.Files) > 0 {
		m.Close(m.Files...)
	}
	if !m.Named() {
		h.srv.Refuse(server.CauseNameless, 1).Int("bytes", len(m.Bytes)).Msg("cannot reply to a client without a name; it must bind one")
		return true
	}
	if ev := m.Event(); ev != nil {
		ev.Int("bytes", len(m.Bytes)).Msg("sending data back to the client")
	}
	m.Reply(m.Bytes)
	return true
}

// Sweep disconnects clients that have sent or read nothing for too long.
//
// The time of a client begins with the first sweep after its last activity. So
// it is never too short, and costs nothing in between. If the process itself
// was stopped, the time begins again: the server has not seen what clients did
// meanwhile.
func (h *Handler) Sweep(now time.Duration, stopped bool) {
	for c := range h.conns {
		if c.hasRead() || c.still == 0 || stopped {
			c.still = now
			continue
		}
		switch still := now - c.still; {
		case c.blocked && h.config.WriteTimeout > 0 && still >= h.config.WriteTimeout:
			c.turnAway(server.CauseUnread, "it has not read for %v", h.config.WriteTimeout)
		case !c.blocked && h.config.IdleTimeout > 0 && still >= h.config.IdleTimeout:
			c.turnAway(server.CauseIdle, "it has sent nothing for %v", h.config.IdleTimeout)
		}
	}
}

// conns yields the connections.
func (h *Handler) conns(yield func(*conn) bool) {
	for lh := range h.srv.Loop.Handlers {
		if c, ok := lh.(*conn); ok && c.echo == h && !yield(c) {
			return
		}
	}
}

// Busy is for clients that wait for more than the echo.
func (h *Handler) Busy() int { return 0 }

// Close closes the connections.
func (h *Handler) Close() {
	for c := range h.conns {
		c.Abandon()
	}
}

// A conn is one client. Its cost to the server is this struct: the bytes in
// flight are in the kernel's buffers.
type conn struct {
	server.Conn
	echo    *Handler
	events  uint32        // what the loop waits for while nothing is blocked
	records bool          // a seqpacket connection: records are received and sent back whole
	blocked bool          // nothing is received: rest waits until the client reads, or without a rest the next record waits for room
	still   time.Duration // the first sweep after the client sent or read something; 0: not yet
	unread  int32         // at the last sweep, while blocked
	buffer  int32         // the send buffer, if it is smaller than the others; 0: full, see room.go
	rest    []byte        // received and not yet sent back
	kept    []byte        // the buffer that rest is part of while blocked
}

// The share of one client before the others get their turn: this many
// receives, and for large ones this many bytes, after which one more receive
// may follow.
const (
	maxTurn      = 16
	maxTurnBytes = 32 << 10
)

func (c *conn) Ready(events uint32) {
	switch {
	case !c.blocked:
	case c.waitsForRoom():
		if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 { // no process reads the reply
			c.end(nil)
		}
		return
	case !c.send() || c.records: // the next call, with its own events, handles what has arrived meanwhile
		return
	}
	if c.records {
		if c.makeRoom() && c.mayReceive() {
			c.receiveRecord(events)
		}
		return
	}
	for turn, bytes := 0, 0; turn < maxTurn && bytes < maxTurnBytes; turn++ {
		if !c.mayReceive() {
			return
		}
		most := c.mostBytes()
		payload, err := c.receive(most)
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			c.end(err)
			return
		}
		if len(payload) == 0 {
			c.logReceived(payload)
			c.end(nil)
			return
		}
		c.received(payload)
		if !c.sendBack(payload) || len(payload) < most {
			return
		}
		bytes += len(payload)
	}
}

func (c *conn) receive(most int) ([]byte, error) {
	if c.NoRights() {
		return c.echo.streams.Read(c.FD(), most)
	}
	return c.echo.streams.ReceiveStream(c.FD(), most)
}

// receiveRecord receives one record. It must distinguish an empty record from
// the end of the connection, because recvmsg(2) reports both as 0 bytes: if
// epoll did not report that the peer has shut down, it was a record.
func (c *conn) receiveRecord(events uint32) {
	var record []byte
	var end bool
	var err error
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		record, end, err = c.echo.records.ReceiveRecord(c.FD())
	} else {
		record, err = c.echo.records.Receive(c.FD())
	}
	switch {
	case err == unix.EAGAIN:
	case err != nil:
		c.end(err)
	case end:
		c.end(nil)
	default:
		c.received(record)
		c.sendBack(record)
	}
}

func (c *conn) received(payload []byte) {
	c.still = 0
	c.echo.srv.Stats.Messages.Add(1)
	c.echo.srv.Stats.Bytes.Add(uint64(len(payload)))
	c.logReceived(payload)
}

func (c *conn) logReceived(payload []byte) {
	if ev := c.Event(); ev != nil {
		ev.Int("bytes", len(payload)).Msg("received " + logtext.Quote(payload))
	}
}

func (c *conn) sendBack(payload []byte) bool {
	if ev := c.Event(); ev != nil {
		ev.Int("bytes", len(payload)).Msg("sending data back to the client")
	}
	c.rest = payload
	return c.send()
}

// send sends the rest and reports whether all of it is sent. It keeps what the
// client does not take now, at most one chunk or record. Nothing more is
// received from a client that does not read.
func (c *conn) send() bool {
	for {
		n, err := raw.Send(c.FD(), c.rest)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && c.growBuffer():
		case err == unix.EAGAIN:
			if !c.blocked {
				c.blocked = true
				c.keep() // the buffer is shared by all connections
				c.Loop().Watch(c.FD(), unix.EPOLLOUT)
			}
			return false
		case err != nil:
			c.end(err)
			return false
		case n < len(c.rest):
			c.rest = c.rest[n:]
			c.still = 0
		default:
			if c.blocked {
				c.still = 0
				c.blocked = false
				c.drop()
				c.Loop().Watch(c.FD(), c.events)
			}
			c.rest = nil
			return true
		}
	}
}

// hasRead reports whether a client that does not take everything has read
// something since the last call. The kernel may let the server send again much
// later: only when three quarters of the send buffer are free.
func (c *conn) hasRead() bool {
	if !c.blocked {
		return false
	}
	if c.waitsForRoom() {
		return true // it is not the client that keeps the server waiting
	}
	unread, err := unix.IoctlGetInt(c.FD(), unix.SIOCOUTQ)
	if err != nil {
		return false
	}
	less := int32(unread) < c.unread
	c.unread = int32(unread)
	return less
}

// end closes the connection, after end of file or, with err, because it broke.
func (c *conn) end(err error) {
	switch ev := c.Event(); {
	case errors.Is(err, sock.ErrDescriptors):
		c.TurnAway(server.CauseDescriptors, "%v", err)
		c.close(c.receiver().Files()...)
		return
	case errors.Is(err, sock.ErrTruncated):
		c.TurnAway(server.CauseTruncated, "%v", err)
		c.close(c.receiver().Files()...)
		return
	case ev == nil:
	case err != nil:
		ev.Err(err).Msgf("lost the connection: %v", sock.ExplainSize(c.FD(), len(c.rest), err))
	default:
		ev.Msg("no data from")
	}
	c.close()
}

// turnAway disconnects a client that the server stops serving.
func (c *conn) turnAway(why server.Cause, format string, args ...any) {
	c.TurnAway(why, format, args...)
	c.close()
}

// mayReceive reports whether a message may be received from the connection. If
// not, the connection is closed.
func (c *conn) mayReceive() bool {
	if c.MayReceive() {
		return true
	}
	c.close()
	return false
}

// close closes the connection, and the descriptors that came with its last
// message.
func (c *conn) close(strays ...int) {
	c.giveRoomBack()
	c.Close(strays...)
}

// receiver returns the receiver of the connection's messages.
func (c *conn) receiver() *sock.Receiver {
	if c.records {
		return c.echo.records
	}
	return c.echo.streams
}
