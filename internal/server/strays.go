package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// No close of a descriptor that a client has sent may happen on the loop, see
// [Closers]. Since Linux 6.16 the kernel refuses to pass descriptors to the
// server's sockets, see [sock.RefuseRights]. On older kernels, and with sockets
// that a parent process made without that option, the server receives the
// descriptors that come along, and closes them beside the loop; so it does with
// a connection in whose queue there may be some.

// The limits of what is closed beside the loop at a time and counts for no other
// limit: descriptors that came with messages, and rejected connections. At the
// first limit a message with descriptors stays in its queue: a connection is
// closed with it, and a datagram socket waits. At the second, no further
// client is accepted.
const (
	maxStrays   = 4 * sock.MaxRights
	maxRejected = 1024
)

var (
	errClosing = errors.New("the connections of too many rejected clients still wait to be closed, because of descriptors that these have sent")
	errStuffed = errors.New("message carries file descriptors, and too many others still wait to be closed")
)

// CloseBeside closes descriptors that come from a user, -1 if it is not known,
// beside the loop, see [Closers], and then calls done on the loop's goroutine.
func (s *Server) CloseBeside(uid int64, done func(), fds ...int) {
	s.closers.Close(uid, func() { s.Loop.Post(done) }, fds...)
}

// reject closes the connection of a client that is not served.
func (s *Server) reject(fd int, noRights bool, cred *unix.Ucred) {
	if noRights || sock.Drain(fd) {
		_ = unix.Close(fd)
		return
	}
	uid := int64(-1)
	if cred != nil {
		uid = int64(cred.Uid)
	}
	s.rejected++
	s.CloseBeside(uid, func() { s.rejected-- }, fd)
}

// Close closes the connection, and the descriptors that came with its last
// message. Until they are closed, it counts for the limits of its user.
func (c *Conn) Close(strays ...int) {
	s := c.ln.server
	if len(strays) == 0 && (c.NoRights() || sock.Drain(c.FD())) {
		s.Loop.CloseFD(c.FD())
		c.ended()
		return
	}
	s.Loop.Remove(c.FD())
	s.closing++
	s.strays += len(strays)
	closed := *c
	s.CloseBeside(c.UID, func() {
		s.closing--
		s.discarded(len(strays))
		closed.ended()
	}, slices.Concat([]int{c.FD()}, strays)...)
}

func (c *Conn) ended() {
	c.ln.server.forget(c.UID)
	if ev := c.Event(); ev != nil && !c.ln.server.stopping() {
		ev.Msg(waitingConnection)
	}
}

// Abandon closes the connection at the end of the server.
func (c *Conn) Abandon() {
	c.ln.server.Loop.Remove(c.FD())
	c.ln.server.reject(c.FD(), c.NoRights(), nil)
}

// End ends a connection that its handler has closed, once the descriptors that
// are left are closed, beside the loop: sockets in whose queue there may be
// descriptors.
func (c *Conn) End(left ...int) {
	s, uid := c.ln.server, c.UID
	if len(left) == 0 {
		s.forget(uid)
		return
	}
	s.closing++
	s.CloseBeside(uid, func() {
		s.closing--
		s.forget(uid)
	}, left...)
}

// Done is End for other goroutines.
func (c *Conn) Done() {
	s, uid := c.ln.server, c.UID
	s.Loop.Post(func() { s.forget(uid) })
}

// MayReceive reports whether a message may be received from the connection. If
// not, too many descriptors of others still wait to be closed, and the client
// is turned away.
func (c *Conn) MayReceive() bool {
	if c.NoRights() || !c.ln.server.stuffed() || !sock.PeekRights(c.FD()) {
		return true
	}
	c.TurnAway(CauseDescriptors, "%v", errStuffed)
	return false
}

// stuffed reports whether there is no room for the descriptors of one more
// message.
func (s *Server) stuffed() bool { return s.strays+sock.MaxRights > maxStrays }

// mayReceive reports whether a message may be received. If not, the socket waits
// until other descriptors are closed.
func (d *datagrams) mayReceive() bool {
	if d.noRights || !d.server.stuffed() || !sock.PeekRights(d.socket.FD()) {
		return true
	}
	d.stalled = true
	d.halt()
	return false
}

// closeFiles closes descriptors that came from a user, -1 if it is not known.
func (d *datagrams) closeFiles(uid int64, fds ...int) {
	if len(fds) > 0 {
		d.server.strays += len(fds)
		d.server.CloseBeside(uid, func() { d.server.discarded(len(fds)) }, fds...)
	}
}

// discarded counts descriptors that are closed now.
func (s *Server) discarded(n int) {
	s.strays -= n
	for _, d := range s.datagrams {
		if d.stalled && !s.stuffed() {
			d.stalled = false
			d.resume()
		}
	}
}
