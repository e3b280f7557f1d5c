package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/relay/record"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// A link is a client's connection together with its connection to the target.
type link struct {
	relay          *Relay
	about          server.Client
	cancel         context.CancelFunc // ends the dial to the target; nil if there is none
	client, target end
	still          time.Duration // the first sweep after bytes passed; 0: not yet
	reset          bool          // TCP ends get a reset at the end
	over           bool          // nothing passes any more, see [link.lingers]
	acked          int           // sweeps that found everything acknowledged since it is over
	closed         bool
	record         *record.Conn
}

// An end is one socket of a link, and the direction that begins there.
type end struct {
	link    *link
	fd      int    // -1: not connected yet
	unix    bool   // descriptors may arrive
	records bool   // seqpacket
	name    string // "client" or "target"
	added   bool   // to the loop
	asked   uint32 // events that the loop waits for
	hung    bool   // the loop has reported a hang-up, and would do so at every turn

	rest     []byte // received here, and not accepted by the other end yet
	files    []int  // descriptors that belong to rest
	buffer   int    // the send buffer, if it is smaller than the others; 0: full
	granted  bool   // buffer is to be returned
	parked   bool   // it tries again after a pause, see room.go
	kept     int    // what rest takes of the memory
	flying   int    // descriptors that the other end may not have received yet
	noRights bool   // no descriptor comes, see [sock.RefusesRights]
	waits    bool   // the other end does not accept rest now
	buf      []byte // the buffer that rest is part of; nil if rest is a copy
	pipe     *pipe  // in place of rest; nil if there is none
	eof      bool   // nothing more is received from this end
	dead     bool   // a TCP connection that broke
	drains   bool   // received bytes are thrown away, until eof; TCP only, see [end.stop]
	passed   bool   // the other end knows that nothing more comes
	bytes    uint64 // received from this end
	lost     uint64 // of these, and of what was left in the kernel: not delivered
}

// Connection serves a client.
func (r *Relay) Connection(c server.Client) {
	l := &link{relay: r, about: c}
	l.client = end{link: l, fd: c.FD, name: "client", unix: c.Type.Unix(), noRights: c.NoRights, records: c.Type == addr.Seqpacket}
	l.target = end{link: l, fd: -1, name: "target", unix: r.config.Target.Type.Unix(), noRights: r.noRights, records: c.Type == addr.Seqpacket}
	r.links[l] = struct{}{}
	if c.Cred != nil && r.config.Process != 0 && int(c.Cred.Pid) == r.config.Process {
		l.refuse("it is this relay itself: the target leads back to where the relay listens")
		return
	}
	if err := l.client.prepare(); err != nil {
		l.refuse(escape(err))
		return
	}
	if fd, ok := r.connect(); ok {
		l.connected(fd, nil)
		return
	}
	l.client.watch(0) // reports only that the client has hung up
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(r.ctx)
	r.dial(ctx, func(conn *sock.Conn, err error) {
		fd := -1
		if err == nil {
			if fd, err = conn.Detach(); err == nil && l.closed {
				_ = unix.Close(fd)
			}
		}
		if !l.closed {
			l.connected(fd, err)
		}
	})
}

// connect connects to the target if that takes no time: to a Unix socket that
// is served and has room in its backlog. On any failure, [Relay.dial] finds
// the reason.
func (r *Relay) connect() (fd int, ok bool) {
	if !r.config.Target.Type.Unix() || r.queued.Load() > 0 {
		return -1, false
	}
	fd, err := sock.DialConfig{Control: func(fd int) error {
		sock.InlineUrgent(fd)
		if !r.config.PassFiles {
			sock.RefuseRights(fd)
		}
		return nil
	}}.Connect(r.config.Target.Sock())
	if err != nil {
		return -1, false
	}
	cred, err := sock.PeerCred(fd)
	if err != nil || r.config.Check(*cred) != nil {
		_ = unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// prepare sets the options that a message type needs. With credentials, an
// empty record can be distinguished from the end; and the send buffer must fit
// any message that a process can send.
//
// If memory is short, the buffer is smaller, see room.go.
func (e *end) prepare() error {
	e.buffer, e.granted = e.link.relay.config.Memory.Buffer(e.link.user()), true
	size := e.buffer
	if e.records && size == 0 {
		size = sock.MaxMessage() + sock.Overhead // otherwise a message that is too large fails with EMSGSIZE
	}
	if size > 0 {
		_ = sock.SetSendBuffer(e.fd, size)
	}
	if !e.records {
		return nil
	}
	return sock.PassCred(e.fd)
}

// connected continues after the dial to the target has succeeded or failed.
func (l *link) connected(fd int, err error) {
	if l.cancel != nil {
		l.cancel()
	}
	if l.target.fd = fd; err == nil {
		err = l.target.prepare()
	}
	if err != nil {
		if l.relay.ctx.Err() != nil {
			l.close()
			return
		}
		l.refuse(escape(err))
		l.settle()
		return
	}
	l.record = l.relay.record(l.about.ID, l.about.Peer, l.about.Cred)
	l.settle()
}

func (e *end) other() *end {
	if e == &e.link.client {
		return &e.link.target
	}
	return &e.link.client
}

// Ready handles the events of an end.
func (e *end) Ready(events uint32) {
	const gone = unix.EPOLLHUP | unix.EPOLLERR
	l, o := e.link, e.other()
	if l.target.fd < 0 { // the client did not wait for the target
		if n, err := unix.IoctlGetInt(e.fd, unix.SIOCINQ); err == nil && n > 0 { // but the client has sent something
			e.hung = true
			e.watch(0)
			return
		}
		l.event(l.relay.config.Log.Info()).Msg("the client left before the target was reached")
		l.close()
		return
	}
	if o.waits && events&(unix.EPOLLOUT|gone) != 0 {
		o.flush()
	}
	if !l.closed && !e.eof && !e.waits && !e.parked && events&(unix.EPOLLIN|gone) != 0 {
		e.receive()
	}
	if l.closed {
		return
	}
	if events&gone != 0 {
		e.hung = true
		if e.eof && events&unix.EPOLLERR != 0 { // of TCP: unacknowledged bytes stay so
			e.dead = true
		}
		if e.eof && !o.passed { // it has closed, so no process reads what the other end still sends
			o.drop(unix.EPIPE)
		}
	}
	l.settle()
}

// receive forwards the received bytes, up to a limit, so that the other
// connections get their turn.
func (e *end) receive() {
	for range maxTurn {
		if !e.makeRoom() || !e.mayReceive() {
			return
		}
		payload, files, err := e.read()
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case err == unix.ECONNRESET && e.unix:
			// It has closed without reading all, and what it has sent is still
			// here: of records the kernel reports this first, of a stream last.
			e.link.event(e.link.relay.config.Log.Info()).Msg("the " + e.name + " closed its socket without reading everything")
			continue
		case err == io.EOF:
			e.eof = true
			return
		case unwanted(err):
			text := err.Error()
			if errors.Is(err, sock.ErrDescriptors) && !e.link.relay.config.PassFiles {
				text = sock.ErrDescriptors.Error() + "; --pass-files passes descriptors on"
			}
			e.link.refuse("the " + e.name + "'s " + text)
			return
		case err != nil:
			e.link.lost(e, err)
			return
		}
		e.link.still = 0
		if e.drains {
			e.lost += uint64(len(payload))
			continue
		}
		e.bytes += uint64(len(payload))
		e.link.record.Data(e == &e.link.client, payload, files)
		e.rest, e.files = payload, files
		if files != nil {
			if e.received(); e.link.closed {
				return
			}
		}
		if !e.flush() || !e.records && len(payload) < e.limit() {
			return
		}
		if !e.unix && e.link.record == nil && !e.spliced() { // much data is waiting
			return
		}
	}
}

// read receives into the relay's buffer. The error is io.EOF at the end.
func (e *end) read() (payload []byte, files []int, err error) {
	r := e.link.relay
	var n int
	switch {
	case r.config.PassFiles && e.unix && !e.records:
		n, files, err = r.placer.receive(e.fd, r.buf)
	case e.records && e.noRights:
		n, _, _, err = sock.ReceiveFiles(e.fd, r.buf, 0)
		return r.buf[:n], nil, err
	case e.records, e.unix && !e.noRights: // without room for descriptors, the kernel would close them here
		n, files, _, err = sock.ReceiveFiles(e.fd, r.buf, maxFiles)
		if files != nil && !r.config.PassFiles {
			r.files.add(e.link.user(), len(files))
			e.files = files
			e.closeFiles()
			return nil, nil, sock.ErrDescriptors
		}
		return r.buf[:n], files, err
	default:
		n, err = raw.Read(e.fd, r.buf[:e.limit()])
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return r.buf[:max(n, 0)], files, err
}

// flush sends the rest to the other end, and reports whether all of it is
// sent.
func (e *end) flush() bool {
	r, o := e.link.relay, e.other()
	for {
		n, err := e.send()
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN || err == unix.ETOOMANYREFS:
			if !e.waits && e.pipe == nil {
				e.rest, e.buf = r.spare(e.rest, o.buffer > 0)
				e.keep()
			}
			e.waits = true
			if err == unix.ETOOMANYREFS {
				e.park()
			}
			return false
		case err == unix.EPIPE || err == unix.ECONNRESET:
			if !o.unix {
				o.dead, e.link.reset = true, true
			}
			e.drop(err)
			return false
		case err != nil:
			e.link.refuse(escape(fmt.Errorf("send to the %s: %w", o.name, sock.ExplainSize(o.fd, e.unsent(), err))))
			e.drop(err)
			return false
		}
		e.link.still = 0
		e.closeFiles()
		if e.pipe != nil {
			e.pipe.held -= n
		} else {
			e.rest = e.rest[n:]
		}
		if e.unsent() == 0 {
			e.forget()
			return true
		}
	}
}

// unsent returns how many bytes the other end has not accepted.
func (e *end) unsent() int {
	if e.pipe != nil {
		return e.pipe.held
	}
	return len(e.rest)
}

// forget drops the rest.
func (e *end) forget() {
	e.closeFiles()
	e.link.relay.giveBack(e.buf)
	e.unkeep()
	if e.pipe != nil {
		e.link.relay.givePipe(e.pipe)
	}
	e.rest, e.buf, e.pipe, e.waits = nil, nil, nil, false
}

// drop gives up a direction whose receiver takes nothing more. The opposite
// direction continues.
func (e *end) drop(err error) {
	lost := e.unsent()
	e.forget()
	e.passed = true
	if !e.eof {
		e.stop()
		if left, err := unix.IoctlGetInt(e.fd, unix.SIOCINQ); err == nil && e.unix { // nothing more comes
			lost += left
		}
	}
	e.lost += uint64(lost)
	if lost > 0 { // otherwise it is how most connections end
		e.link.event(e.link.relay.config.Log.Info()).Err(err).Int("bytes", lost).
			Msgf("the %s accepts nothing more: %s", e.other().name, escape(err))
	}
}

// stop ends the receiving from an end whose bytes no process takes. A Unix
// socket is shut down, SHUT_RD, and the sender's next write fails with EPIPE.
// TCP has no such thing: bytes that arrive at a socket that is closed, or does
// not read, are answered by a reset, which voids what has been sent and not
// acknowledged. So they are received and thrown away.
func (e *end) stop() {
	if !e.unix {
		e.drains = !e.eof
		return
	}
	e.eof = true
	_ = unix.Shutdown(e.fd, unix.SHUT_RD)
}

// settle passes ends of file on, closes finished links, and makes the loop
// wait for the rest.
func (l *link) settle() {
	if l.closed {
		return
	}
	ends := [...]*end{&l.client, &l.target}
	for _, e := range ends {
		if (e.eof || e.drains) && !e.waits && !e.passed {
			if o := e.other(); o.unix || !l.reset {
				_ = unix.Shutdown(o.fd, unix.SHUT_WR)
			}
			l.record.End(e == &l.client)
			e.passed = true
		}
	}
	l.over = l.client.passed && l.target.passed && !l.client.waits && !l.target.waits
	if l.over && !l.lingers() {
		ev := l.event(l.relay.config.Log.Info()).Uint64("to_target", l.client.bytes).Uint64("to_client", l.target.bytes)
		if lost := l.client.lost + l.target.lost; lost > 0 {
			ev = ev.Uint64("lost", lost)
		}
		ev.Msg("connection ended")
		l.close()
		return
	}
	for _, e := range ends {
		if l.closed {
			return
		}
		want := uint32(0)
		if !e.eof && !e.waits && !e.parked {
			want |= unix.EPOLLIN
		}
		if e.other().waits && !e.other().parked {
			want |= unix.EPOLLOUT
		}
		e.watch(want)
	}
}

// lingers reports whether a link that is over must stay, because closing a TCP
// end would void bytes that the kernel has accepted for it. That is so until
// they are acknowledged, if the end gets a reset; otherwise until the other side
// has closed too, see [end.stop]. A client that does not close has a second to
// read, once everything is acknowledged. And descriptors that are not received
// yet count for their user.
func (l *link) lingers() bool {
	for _, e := range []*end{&l.client, &l.target} {
		e.landed()
		switch {
		case e.flying > 0:
			return true
		case e.unix || e.dead:
		case l.reset && e.unacked() > 0, !l.reset && !e.eof && l.acked < 2:
			return true
		}
	}
	return false
}

// unacked returns how many bytes the kernel has accepted for an end and not
// delivered. For a Unix socket it is 0: there they are delivered, whatever
// happens to this end.
func (e *end) unacked() int {
	if e.unix || e.dead || e.fd < 0 {
		return 0
	}
	n, _ := unix.IoctlGetInt(e.fd, unix.SIOCOUTQ)
	return n
}

// sweep ends a link that lingered for long enough.
func (l *link) sweep() {
	if l.over {
		if l.acked++; l.client.unacked()+l.target.unacked() > 0 {
			l.acked = 0
		}
		l.settle()
	}
}

// watch makes the loop wait for events. With no events, the loop reports only
// that the other side has hung up, and only once.
func (e *end) watch(want uint32) {
	r := e.link.relay
	switch {
	case want == 0 && e.hung:
		e.remove()
	case !e.added:
		if err := r.loop.Add(e.fd, e, want); err != nil {
			r.warn.Warn().Err(err).Msg(escape(err))
			e.link.close()
			return
		}
		e.added = true
	case want != e.asked:
		r.loop.Watch(e.fd, want)
	}
	e.asked = want
}

func (e *end) remove() {
	if e.added {
		e.link.relay.loop.Remove(e.fd)
		e.added = false
	}
}

// lost ends both directions of a TCP end that broke. What was received is still
// delivered, and then the other end gets a reset, if it is TCP too.
func (l *link) lost(e *end, err error) {
	l.event(l.relay.config.Log.Info()).Err(err).Uint64("to_target", l.client.bytes).Uint64("to_client", l.target.bytes).
		Msgf("lost the connection to the %s: %s", e.name, escape(err))
	e.eof, e.dead, l.reset = true, true, true
	if o := e.other(); !o.passed {
		o.drop(err)
	}
}

// refuse ends a link that may not continue, and logs why. What was received is
// still delivered; the caller calls settle.
func (l *link) refuse(why string) {
	l.event(l.relay.warn.Warn()).Msg("disconnected a client: " + why)
	l.reset = true
	if l.target.fd < 0 {
		l.close()
		return
	}
	for _, e := range []*end{&l.client, &l.target} {
		if !e.eof {
			e.stop()
		}
	}
}

// cut ends a link whose ends do not read, and logs why and what is lost.
func (l *link) cut(why string) {
	lost := l.client.unsent() + l.target.unsent() + l.client.unacked() + l.target.unacked()
	ev := l.event(l.relay.warn.Warn())
	if lost > 0 {
		ev = ev.Int("lost", lost)
	}
	ev.Msg("disconnected a client: " + why)
	l.reset = true
	l.close()
}

func (l *link) close() {
	if l.closed {
		return
	}
	l.closed = true
	if l.cancel != nil {
		l.cancel()
	}
	for _, e := range []*end{&l.client, &l.target} {
		if !e.passed {
			l.record.End(e == &l.client)
		}
		e.forget()
		e.remove()
		e.flown()
		if e.granted {
			l.relay.config.Memory.ReturnBuffer(l.user(), e.buffer)
		}
		if l.reset && !e.unix && e.fd >= 0 && e.unacked() == 0 {
			_ = unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
	}
	delete(l.relay.links, l)
	l.closeSockets()
}

func (l *link) event(ev *zerolog.Event) *zerolog.Event {
	if ev == nil {
		return nil // Escape costs time
	}
	return logtext.WithCred(ev.Uint64("conn", l.about.ID).Str("peer", logtext.Escape(l.about.Peer)), l.about.Cred)
}

// send sends the rest, with its descriptors if there are any. A stream may
// accept only a part of the bytes, but then it has accepted all descriptors.
func (e *end) send() (int, error) {
	fd := e.other().fd
	switch {
	case e.pipe != nil:
		n, err := unix.Splice(e.pipe.fds[0], nil, fd, nil, e.pipe.held, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		return int(n), err
	case len(e.files) == 0:
		return raw.Send(fd, e.rest)
	}
	if !e.mayFly() {
		return 0, unix.ETOOMANYREFS
	}
	rights := unix.UnixRights(e.files...)
	iov := unix.Iovec{}
	header := unix.Msghdr{Iov: &iov, Control: &rights[0]}
	header.SetIovlen(1)
	header.SetControllen(len(rights))
	if len(e.rest) > 0 {
		iov.Base = &e.rest[0]
		iov.SetLen(len(e.rest))
	}
	n, err := raw.SendMessage(fd, &header)
	if err == nil {
		e.flying += len(e.files)
		e.link.relay.flying.add(e.link.user(), len(e.files))
	}
	return n, err
}
