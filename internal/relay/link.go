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

// A link is a client's connection and the one to the target that belongs to it.
type link struct {
	relay          *Relay
	about          echoserver.Client
	client, target end
	still          time.Duration // the first sweep after something passed; 0: not yet
	closed         bool
	record         *record.Conn
}

// An end is one socket of a link, and the direction that begins there.
type end struct {
	link    *link
	fd      int    // -1: not connected yet
	unix    bool   // descriptors may come
	records bool   // seqpacket
	name    string // "client" or "target"
	added   bool   // to the loop
	asked   uint32 // what the loop waits for
	hung    bool   // the loop has reported a hang-up, and would at every turn

	rest   []byte // received here, and not taken by the other end yet
	files  []int  // that go with it
	waits  bool   // the other end does not take rest now
	buf    []byte // that rest is a part of, nil: rest is a copy
	pipe   *pipe  // in place of rest; nil: there is none
	eof    bool   // nothing more comes from here, or nobody takes it
	passed bool   // and the other end knows
	bytes  uint64 // that came from here
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
	l.client.watch(0) // which reports a client that is gone
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

// connect connects to the target if that takes no time: of Unix sockets, to one
// that is there and has room. Whatever is wrong, [Relay.dial] finds out.
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

// prepare sets what a message type needs: an empty record is told from the end by
// its credentials, and any message that a process can send must fit.
func (e *end) prepare() error {
	if !e.records {
		return nil
	}
	if err := transport.PassCred(e.fd); err != nil {
		return err
	}
	_ = transport.SetSendBuffer(e.fd, transport.MaxMessage()+32) // or else the message that is too large has an error of its own
	return nil
}

// connected goes on when the target is there, or is not.
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

// Ready does what an end is ready for.
func (e *end) Ready(events uint32) {
	const gone = unix.EPOLLHUP | unix.EPOLLERR
	l, o := e.link, e.other()
	if l.target.fd < 0 { // the client did not wait for it
		if n, err := unix.IoctlGetInt(e.fd, unix.SIOCINQ); err == nil && n > 0 { // but has said something
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
		if e.eof && !o.passed { // it has closed: what the other end still sends has no reader
			o.drop(unix.EPIPE)
		}
	}
	l.settle()
}

// receive carries on what has come, up to a bound: the others must get their turn.
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
		if !e.unix && e.link.record == nil && !e.spliced() { // there is much
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
	case e.unix: // unlike read(2), it tells of descriptors that came along
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

// flush sends the rest to the other end, and reports whether all of it is gone.
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

// unsent is how many bytes the other end has not taken.
func (e *end) unsent() int {
	if e.pipe != nil {
		return e.pipe.held
	}
	return len(e.rest)
}

// forget gives up the rest.
func (e *end) forget() {
	e.closeFiles()
	e.link.relay.giveBack(e.buf)
	if e.pipe != nil {
		e.link.relay.givePipe(e.pipe)
	}
	e.rest, e.buf, e.pipe, e.waits = nil, nil, nil, false
}

func (e *end) closeFiles() {
	// Not as uds.CloseFiles does: the receiver has the same open files, and their
	// options are its affair.
	for _, fd := range e.files {
		_ = unix.Close(fd)
	}
	if e.waits {
		e.link.relay.held -= len(e.files)
	}
	e.files = nil
}

// drop ends a direction whose other end takes nothing more: who writes there
// learns it from shutdown(2), SHUT_RD. The opposite direction goes on.
func (e *end) drop(err error) {
	e.link.event(e.link.relay.config.Log.Info()).Err(err).Int("bytes", e.unsent()).
		Msgf("the %s takes nothing more: %s", e.other().name, escape(err))
	e.forget()
	e.eof, e.passed = true, true
	_ = unix.Shutdown(e.fd, unix.SHUT_RD)
}

// settle passes ends on, closes what is done, and asks the loop for the rest.
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

// watch has the loop wait for events; for none, it reports only that the other
// side has hung up, and that once.
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

// lost ends a link whose end e broke: the other learns it, of TCP by a reset.
func (l *link) lost(e *end, err error) {
	l.event(l.relay.config.Log.Info()).Err(err).Uint64("to_target", l.client.bytes).Uint64("to_client", l.target.bytes).
		Msgf("lost the connection to the %s: %s", e.name, escape(err))
	l.abort()
}

// refuse ends a link that may not go on, and says why.
func (l *link) refuse(why string) {
	l.event(l.relay.warn.Warn()).Msg("turned a client away: " + why)
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
		return nil // Escape costs something
	}
	return transcript.WithCred(ev.Uint64("conn", l.about.ID).Str("peer", transcript.Escape(l.about.Peer)), l.about.Cred)
}

// send sends the rest, with descriptors if there are some: a stream may take a part
// of it, and has all of them then.
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
