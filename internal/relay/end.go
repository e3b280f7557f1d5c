package relay

import (
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// An end is one socket of a link.
type end struct {
	link    *link
	name    string // "client" or "target"
	fd      int    // -1: not connected yet
	unix    bool
	rights  bool       // descriptors may arrive, see [sock.RefusesRights]
	out, in *direction // that begins, and that ends here
	buffer  int        // the send buffer, if it is smaller than the others; 0: full
	asked   uint32     // events that the loop waits for; 0: it does not know the end
	hung    bool       // the loop has reported a hang-up, and would do so at every turn
	eof     bool       // nothing more is received
	broken  bool       // a TCP connection that broke
}

// prepare sets the options that a message type needs. With credentials, an
// empty record can be distinguished from the end; and the send buffer must fit
// any message that a process can send.
//
// If memory is short, the buffer is smaller, see room.go.
func (e *end) prepare() error {
	e.buffer = e.link.relay.srv.Memory.Buffer(e.link.conn.UID)
	size := e.buffer
	if e.link.records && size == 0 {
		size = sock.MaxMessage() + sock.Overhead // otherwise a message that is too large fails with EMSGSIZE
	}
	if size > 0 {
		_ = sock.SetSendBuffer(e.fd, size)
	}
	if !e.link.records {
		return nil
	}
	return sock.PassCred(e.fd)
}

// Ready handles the events of an end.
func (e *end) Ready(events uint32) {
	const gone = unix.EPOLLHUP | unix.EPOLLERR
	l := e.link
	if l.target.fd < 0 {
		l.leave()
		return
	}
	if e.in.state == blocked && events&(unix.EPOLLOUT|gone) != 0 {
		e.in.flush()
	}
	if e.out.receives() && events&(unix.EPOLLIN|gone) != 0 {
		e.out.receive()
	}
	if events&gone != 0 {
		e.hung = true
		if e.eof && events&unix.EPOLLERR != 0 { // of TCP: unacknowledged bytes stay so
			e.broken = true
		}
		if e.eof && e.in.state != ended { // it has closed, so no process reads what the other end still sends
			e.in.drop(unix.EPIPE)
		}
	}
	l.settle()
}

// watch makes the loop wait for events. With no events, the loop reports only
// that the other side has hung up, and only once.
func (e *end) watch(want uint32) {
	if want != 0 || !e.hung {
		want |= unix.EPOLLHUP // which epoll(7) adds in any case
	}
	loop := e.link.relay.srv.Loop
	switch {
	case e.link.closed || want == e.asked:
		return
	case want == 0:
		loop.Remove(e.fd)
	case e.asked != 0:
		loop.Watch(e.fd, want)
	default:
		if err := loop.Add(e.fd, e, want); err != nil {
			e.link.relay.warn.Warn().Err(err).Msg(escape(err))
			e.link.close()
			return
		}
	}
	e.asked = want
}

// stop ends the receiving from an end whose bytes no process takes. A Unix
// socket is shut down, SHUT_RD, and the sender's next write fails with EPIPE.
// TCP has no such thing: bytes that arrive at a socket that is closed, or does
// not read, are answered by a reset, which voids what has been sent and not
// acknowledged. So they are received and thrown away, once the direction has
// ended.
func (e *end) stop() {
	if e.unix && !e.eof {
		e.eof = true
		_ = unix.Shutdown(e.fd, unix.SHUT_RD)
	}
}

// queued returns how many bytes are in the send buffer: for a Unix socket, how
// many the other side has not received, for TCP, not acknowledged.
func (e *end) queued() int {
	n, _ := unix.IoctlGetInt(e.fd, unix.SIOCOUTQ)
	return n
}

// unacked returns how many bytes the kernel has accepted for an end and would
// not deliver. For a Unix socket it is 0: there they are delivered, whatever
// happens to this end.
func (e *end) unacked() int {
	if e.unix || e.broken {
		return 0
	}
	return e.queued()
}

// resize sets the send buffer to size bytes, as the kernel counts them.
func (e *end) resize(size int) {
	e.buffer = size
	_ = sock.SetSendBuffer(e.fd, size)
}

// close closes the socket. It reports false, and leaves that to the server, if
// descriptors may be in the queue: no close of these may happen on the loop.
func (e *end) close() bool {
	if e.asked != 0 {
		e.link.relay.srv.Loop.Remove(e.fd)
	}
	e.link.relay.srv.Memory.ReturnBuffer(e.link.conn.UID, e.buffer)
	if e.rights && !sock.Drain(e.fd) {
		return false
	}
	if e.link.reset && !e.unix && e.unacked() == 0 {
		_ = unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	_ = unix.Close(e.fd)
	return true
}
