package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// No close of a descriptor that a client has sent may happen on the loop, see
// package closing. Since Linux 6.16 the kernel refuses to pass descriptors to
// the server's sockets, see [sock.RefuseRights]. On older kernels, and with
// sockets that a parent process made without that option, the server receives
// the descriptors that come along, and closes them beside the loop; so it does
// with a connection in whose queue there may be some.

// The limits of what is closed beside the loop at a time and counts for no other
// limit: descriptors that came with messages, and rejected connections. At the
// first limit a message with descriptors stays in its queue: a connection is
// closed with it, and a datagram socket waits. At the second, no further
// client is accepted.
const (
	maxStrays   = 4 * sock.MaxRights
	maxRejected = 1024
)

var errClosing = errors.New("the connections of too many rejected clients still wait to be closed, because of descriptors that these have sent")

// closeBeside closes descriptors that come from a user, -1 if it is not known,
// beside the loop, and then calls done on the loop's goroutine.
func (s *server) closeBeside(uid int64, done func(), fds ...int) {
	s.closers.Close(uid, func() { s.ended.add(s.loop, done) }, fds...)
}

// discard closes the descriptors that came with the last datagram.
func (d *datagrams) discard() {
	uid := int64(-1)
	if cred, ok := d.server.receiver.Cred(); ok {
		uid = int64(cred.Uid)
	}
	d.closeFiles(uid, d.server.receiver.Files()...)
}

// closeFiles closes descriptors that came from a user, -1 if it is not known.
func (d *datagrams) closeFiles(uid int64, fds ...int) {
	if len(fds) > 0 {
		d.server.strays += len(fds)
		d.server.closeBeside(uid, func() { d.server.discarded(len(fds)) }, fds...)
	}
}

// discarded counts descriptors that are closed now.
func (s *server) discarded(n int) {
	s.strays -= n
	for _, d := range s.datagrams {
		if d.stalled && !s.stuffed() {
			d.stalled = false
			d.resume()
		}
	}
}

// stuffed reports whether there is no room for the descriptors of one more
// message.
func (s *server) stuffed() bool { return s.strays+sock.MaxRights > maxStrays }

// reject closes the connection of a client that is not served.
func (s *server) reject(fd int, noRights bool, cred *unix.Ucred) {
	if noRights || sock.Drain(fd) {
		_ = unix.Close(fd)
		return
	}
	uid := int64(-1)
	if cred != nil {
		uid = int64(cred.Uid)
	}
	s.rejected++
	s.closeBeside(uid, func() { s.rejected-- }, fd)
}

// close closes the connection, and the descriptors that came with its last
// message. Until they are closed, it counts for the limits of its user.
func (c *conn) close(strays ...int) {
	s := c.server
	c.giveRoomBack()
	s.loop.Remove(c.fd)
	ended := func() {
		s.forgetUser(c.uid)
		if ev := c.event(); ev != nil && s.drainUntil.IsZero() {
			ev.Msg(waitingConnection)
		}
	}
	if len(strays) == 0 && (c.noRights || sock.Drain(c.fd)) {
		_ = unix.Close(c.fd)
		ended()
		return
	}
	s.closing++
	s.strays += len(strays)
	s.closeBeside(c.uid, func() {
		s.closing--
		s.discarded(len(strays))
		ended()
	}, slices.Concat([]int{c.fd}, strays)...)
}

// receiver returns the receiver of the connection's messages.
func (c *conn) receiver() *sock.Receiver {
	if c.records {
		return c.server.receiver
	}
	return c.server.streams
}

// relayedClosed ends a connection of the relay, once fds are closed.
func (s *server) relayedClosed(uid int64, fds []int) {
	if len(fds) == 0 {
		s.forgetUser(uid)
		return
	}
	s.closing++
	s.closeBeside(uid, func() {
		s.closing--
		s.forgetUser(uid)
	}, fds...)
}

// mayReceive reports whether a message may be received from the connection. If
// not, the connection is closed.
func (c *conn) mayReceive() bool {
	if c.noRights || !c.server.stuffed() || !sock.PeekRights(c.fd) {
		return true
	}
	c.turnAway(CauseDescriptors, "%v", errStuffed)
	return false
}

var errStuffed = errors.New("message carries file descriptors, and too many others still wait to be closed")

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

// close closes the socket, and what is left in its queue not on the loop.
func (d *datagrams) close() {
	if !d.noRights {
		if last, err := unix.FcntlInt(uintptr(d.socket.FD()), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			defer d.server.closers.Close(-1, nil, last)
		}
	}
	_ = d.socket.Close()
}
