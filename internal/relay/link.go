package relay

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/echoserver"
	"github.com/udsecho/udsecho/internal/raw"
	"github.com/udsecho/udsecho/internal/record"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

// A link is a client's connection together with its connection to the target.
type link struct {
	relay          *Relay
	about          echoserver.Client
	client, target end
	still          time.Duration // the first sweep after bytes passed; 0: not yet
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

	rest   []byte // received here, and not accepted by the other end yet
	files  []int  // descriptors that belong to rest
	waits  bool   // the other end does not accept rest now
	buf    []byte // the buffer that rest is part of; nil if rest is a copy
	pipe   *pipe  // in place of rest; nil if there is none
	eof    bool   // this end sends nothing more, or the other end accepts nothing more
	passed bool   // the other end knows about eof
	bytes  uint64 // received from this end
}

// Connection serves a client.
func (r *Relay) Connection(c echoserver.Client) {
	l := &link{relay: r, about: c}
	l.client = end{link: l, fd: c.FD, name: "client", unix: c.Type.Unix(), records: c.Type == transport.Seqpacket}
	l.target = end{link: l, fd: -1, name: "target", unix: r.config.Target.Type.Unix(), records: c.Type == transport.Seqpacket}
	r.links[l] = struct{}{}
	if err := l.client.prepare(); err != nil {
		l.refuse(escape(err))
		return
	}
	if fd, ok := r.connect(); ok {
		l.connected(fd, nil)
		return
	}
	l.client.watch(0) // reports only that the client has hung up
	r.dial(func(conn *transport.Conn, err error) {
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
	if !r.config.Target.Type.Unix() {
		return -1, false
	}
	fd, err := transport.Connect(r.config.Target)
	if err != nil {
		return -1, false
	}
	cred, err := transport.PeerCred(fd)
	if err != nil || r.config.Check(*cred) != nil {
		_ = unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// prepare sets the options that a message type needs. With credentials, an
// empty record can be distinguished from the end; and the send buffer must fit
// any message that a process can send.
func (e *end) prepare() error {
	if !e.records {
		return nil
	}
	if err := transport.PassCred(e.fd); err != nil {
		return err
	}
	_ = transport.SetSendBuffer(e.fd, transport.MaxMessage()+32) // otherwise a message that is too large fails with EMSGSIZE
	return nil
}

// connected continues after the dial to the target has succeeded or failed.
func (l *link) connected(fd int, err error) {
	if l.target.fd = fd; err == nil {
		err = l.target.prepare()
	}
	if err != nil {
		if l.relay.ctx.Err() != nil {
			l.close()
			return
		}
		l.refuse(escape(err))
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
	if !l.closed && !e.eof && !e.waits && events&(unix.EPOLLIN|gone) != 0 {
		e.receive()
	}
	if l.closed {
		return
	}
	if events&gone != 0 {
		e.hung = true
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
		payload, files, err := e.read()
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case err == io.EOF:
			e.eof = true
			return
		case unwanted(err):
			text := err.Error()
			if errors.Is(err, uds.ErrDescriptors) && !e.link.relay.config.PassFiles {
				text = uds.ErrDescriptors.Error() + "; --pass-files passes descriptors on"
			}
			e.link.refuse("the " + e.name + "'s " + text)
			return
		case err != nil:
			e.link.lost(e, err)
			return
		}
		e.bytes += uint64(len(payload))
		e.link.still = 0
		e.link.record.Data(e == &e.link.client, payload, files)
		e.rest, e.files = payload, files
		if !e.flush() || !e.records && len(payload) < len(e.link.relay.buf) {
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
	case e.records || r.config.PassFiles && e.unix:
		limit := 0
		if r.config.PassFiles {
			limit = maxFiles
		}
		n, files, _, err = uds.ReceiveFiles(e.fd, r.buf, limit)
		return r.buf[:n], files, err
	case e.unix: // read(2) would close descriptors that came along silently
		r.iov.Base = &r.buf[0]
		r.iov.SetLen(len(r.buf))
		r.header = unix.Msghdr{Iov: &r.iov}
		r.header.SetIovlen(1)
		n, err = raw.Receive(e.fd, &r.header, unix.MSG_CMSG_CLOEXEC)
		if err == nil && r.header.Flags&unix.MSG_CTRUNC != 0 {
			err = uds.ErrDescriptors
		}
	default:
		n, err = raw.Read(e.fd, r.buf)
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return r.buf[:max(n, 0)], nil, err
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
		case err == unix.EAGAIN:
			if !e.waits && e.pipe == nil {
				e.rest, e.buf = r.spare(e.rest)
				r.held += len(e.files)
			}
			e.waits = true
			if r.held > MaxHeld {
				e.link.refuse(fmt.Sprintf("%d descriptors wait for ends that do not read", r.held))
			}
			return false
		case err == unix.EPIPE || err == unix.ECONNRESET:
			e.drop(err)
			return false
		case err != nil:
			e.link.refuse(escape(fmt.Errorf("send to the %s: %w", o.name, transport.ExplainSize(o.fd, e.unsent(), err))))
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
	if e.pipe != nil {
		e.link.relay.givePipe(e.pipe)
	}
	e.rest, e.buf, e.pipe, e.waits = nil, nil, nil, false
}

func (e *end) closeFiles() {
	// Do not use uds.CloseFiles: the receiver has the same open files, and
	// this process must not change their options.
	for _, fd := range e.files {
		_ = unix.Close(fd)
	}
	if e.waits {
		e.link.relay.held -= len(e.files)
	}
	e.files = nil
}

// drop ends a direction if its other end accepts nothing more. The writer
// learns it from shutdown(2), SHUT_RD. The opposite direction continues.
func (e *end) drop(err error) {
	e.link.event(e.link.relay.config.Log.Info()).Err(err).Int("bytes", e.unsent()).
		Msgf("the %s accepts nothing more: %s", e.other().name, escape(err))
	e.forget()
	e.eof, e.passed = true, true
	_ = unix.Shutdown(e.fd, unix.SHUT_RD)
}

// settle passes ends of file on, closes finished links, and makes the loop
// wait for the rest.
func (l *link) settle() {
	ends := [...]*end{&l.client, &l.target}
	for _, e := range ends {
		if e.eof && !e.waits && !e.passed {
			_ = unix.Shutdown(e.other().fd, unix.SHUT_WR)
			l.record.End(e == &l.client)
			e.passed = true
		}
	}
	if l.client.passed && l.target.passed && !l.client.waits && !l.target.waits {
		l.event(l.relay.config.Log.Info()).Uint64("to_target", l.client.bytes).Uint64("to_client", l.target.bytes).Msg("connection ended")
		l.close()
		return
	}
	for _, e := range ends {
		if l.closed {
			return
		}
		want := uint32(0)
		if !e.eof && !e.waits {
			want |= unix.EPOLLIN
		}
		if e.other().waits {
			want |= unix.EPOLLOUT
		}
		e.watch(want)
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

// lost ends a link whose end e broke. It tells the other end, over TCP with a
// reset.
func (l *link) lost(e *end, err error) {
	l.event(l.relay.config.Log.Info()).Err(err).Uint64("to_target", l.client.bytes).Uint64("to_client", l.target.bytes).
		Msgf("lost the connection to the %s: %s", e.name, escape(err))
	l.abort()
}

// refuse ends a link that may not continue, and logs why.
func (l *link) refuse(why string) {
	l.event(l.relay.warn.Warn()).Msg("disconnected a client: " + why)
	l.abort()
}

func (l *link) abort() {
	for _, e := range []*end{&l.client, &l.target} {
		if !e.unix && e.fd >= 0 {
			_ = unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
	}
	l.close()
}

func (l *link) close() {
	if l.closed {
		return
	}
	l.closed = true
	for _, e := range []*end{&l.client, &l.target} {
		if !e.passed {
			l.record.End(e == &l.client)
		}
		e.forget()
		e.remove()
		if e.fd >= 0 {
			_ = unix.Close(e.fd)
		}
	}
	delete(l.relay.links, l)
	l.about.Done()
}

func (l *link) event(ev *zerolog.Event) *zerolog.Event {
	if ev == nil {
		return nil // Escape costs time
	}
	return transcript.WithCred(ev.Uint64("conn", l.about.ID).Str("peer", transcript.Escape(l.about.Peer)), l.about.Cred)
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
	rights := unix.UnixRights(e.files...)
	iov := unix.Iovec{}
	header := unix.Msghdr{Iov: &iov, Control: &rights[0]}
	header.SetIovlen(1)
	header.SetControllen(len(rights))
	if len(e.rest) > 0 {
		iov.Base = &e.rest[0]
		iov.SetLen(len(e.rest))
	}
	return raw.SendMessage(fd, &header)
}
