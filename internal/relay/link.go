package relay

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/relay/record"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// A link is a client's connection together with its connection to the target:
// two ends, and a direction from each to the other.
type link struct {
	relay              *Relay
	conn               server.Conn        // the client's
	peer               string             // the client's address; "" if it has none
	cred               *unix.Ucred        // the client's; nil if the kernel does not know them
	cancel             context.CancelFunc // ends the dial to the target; nil if there is none
	records            bool               // seqpacket
	client, target     end
	toTarget, toClient direction
	still              time.Duration // the first sweep after bytes passed; 0: not yet
	refused            bool          // nothing more is received to be delivered
	reset              bool          // TCP ends get a reset at the end
	acked              int           // sweeps that found everything acknowledged since it is over
	closed             bool
	record             *record.Conn
}

func (l *link) ends() [2]*end { return [...]*end{&l.client, &l.target} }

// Serve serves a client.
func (r *Relay) Serve(c server.Conn) {
	l := &link{relay: r, conn: c, peer: c.Peer(), cred: c.Cred(), records: c.Type() == addr.Seqpacket}
	unixTarget := r.config.Target.Type.Unix()
	l.client = end{link: l, name: "client", fd: c.FD(), unix: c.Type().Unix(), rights: c.Type().Unix() && !c.NoRights(), out: &l.toTarget, in: &l.toClient}
	l.target = end{link: l, name: "target", fd: -1, unix: unixTarget, rights: unixTarget && !r.noRights, out: &l.toClient, in: &l.toTarget}
	l.toTarget = direction{link: l, from: &l.client, to: &l.target}
	l.toClient = direction{link: l, from: &l.target, to: &l.client}
	r.links[l] = struct{}{}
	err := l.client.prepare()
	if l.cred != nil && r.config.Process != 0 && int(l.cred.Pid) == r.config.Process {
		err = errors.New("it is this relay itself: the target leads back to where the relay listens")
	}
	var who *identity
	if r.config.AsClient && err == nil {
		who, err = identityOf(c.FD())
	}
	if err != nil {
		l.refuse(escape(err))
		return
	}
	if who == nil {
		if fd, ok := r.connect(); ok {
			l.connected(fd, nil)
			return
		}
	}
	l.client.watch(0) // reports only that the client has hung up
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(r.ctx)
	r.dial(ctx, who, func(conn *sock.Conn, err error) {
		fd := -1
		if err == nil {
			fd, err = conn.Detach()
		}
		if !l.closed {
			l.connected(fd, err)
		} else if fd >= 0 {
			_ = unix.Close(fd)
		}
	})
}

// connected continues after the dial to the target has succeeded or failed.
func (l *link) connected(fd int, err error) {
	if l.cancel != nil {
		l.cancel()
	}
	if l.target.fd = fd; err == nil {
		err = l.target.prepare()
	}
	switch {
	case err == nil:
		l.record = l.relay.record(l.conn.ID, l.peer, l.cred)
	case l.relay.ctx.Err() != nil:
		l.close()
	default:
		l.refuse(escape(err))
	}
	l.settle()
}

// leave handles the hang-up of a client that did not wait for the target.
func (l *link) leave() {
	if n, err := unix.IoctlGetInt(l.client.fd, unix.SIOCINQ); err == nil && n > 0 { // but it has sent something
		l.client.hung = true
		l.client.watch(0)
		return
	}
	l.info().Msg("the client left before the target was reached")
	l.close()
}

// settle passes ends of file on, closes finished links, and makes the loop
// wait for the rest.
func (l *link) settle() {
	if l.closed {
		return
	}
	for _, e := range l.ends() {
		if d := e.in; (d.from.eof || l.refused) && !d.pending() && d.state != ended {
			if e.unix || !l.reset {
				_ = unix.Shutdown(e.fd, unix.SHUT_WR)
			}
			d.end()
		}
	}
	if l.over() && !l.lingers() {
		ev := l.info().Uint64("to_target", l.toTarget.bytes).Uint64("to_client", l.toClient.bytes)
		if lost := l.toTarget.lost + l.toClient.lost; lost > 0 {
			ev = ev.Uint64("lost", lost)
		}
		ev.Msg("connection ended")
		l.close()
		return
	}
	for _, e := range l.ends() {
		want := uint32(0)
		if e.out.receives() {
			want |= unix.EPOLLIN
		}
		if e.in.state == blocked {
			want |= unix.EPOLLOUT
		}
		e.watch(want)
	}
}

// over reports whether nothing passes any more.
func (l *link) over() bool { return l.toTarget.state == ended && l.toClient.state == ended }

// lingers reports whether a link that is over must stay, because closing a TCP
// end would void bytes that the kernel has accepted for it. That is so until
// they are acknowledged, if the end gets a reset; otherwise until the other side
// has closed too, see [end.stop]. A client that does not close has a second to
// read, once everything is acknowledged. And descriptors that are not received
// yet count for their user.
func (l *link) lingers() bool {
	for _, e := range l.ends() {
		e.in.landed()
		switch {
		case e.in.flying > 0:
			return true
		case e.unix || e.broken:
		case l.reset && e.unacked() > 0, !l.reset && !e.eof && l.acked < 2:
			return true
		}
	}
	return false
}

// sweep ends a link that lingered for long enough.
func (l *link) sweep() {
	if l.over() {
		if l.acked++; l.client.unacked()+l.target.unacked() > 0 {
			l.acked = 0
		}
		l.settle()
	}
}

// lost ends both directions of a TCP end that broke. What was received is still
// delivered, and then the other end gets a reset, if it is TCP too.
func (l *link) lost(e *end, err error) {
	l.info().Err(err).Uint64("to_target", l.toTarget.bytes).Uint64("to_client", l.toClient.bytes).
		Msgf("lost the connection to the %s: %s", e.name, escape(err))
	e.eof, e.broken, l.reset = true, true, true
	if e.in.state != ended {
		e.in.drop(err)
	}
}

// refuse ends a link that may not continue, and logs why. What was received is
// still delivered; the caller calls settle.
func (l *link) refuse(why string) {
	l.warn().Msg("disconnected a client: " + why)
	l.refused, l.reset = true, true
	if l.target.fd < 0 {
		l.close()
		return
	}
	for _, e := range l.ends() {
		e.stop()
	}
}

// cut ends a link whose ends do not read, and logs why and what is lost.
func (l *link) cut(why string) {
	ev := l.warn()
	if lost := l.unsent() + l.client.unacked() + l.target.unacked(); lost > 0 {
		ev = ev.Int("lost", lost)
	}
	ev.Msg("disconnected a client: " + why)
	l.reset = true
	l.close()
}

// unsent returns how many bytes were received and not sent.
func (l *link) unsent() int { return l.toTarget.unsent() + l.toClient.unsent() }

func (l *link) close() {
	if l.closed {
		return
	}
	l.closed = true
	if l.cancel != nil {
		l.cancel()
	}
	var beside []int
	for _, e := range l.ends() {
		if e.in.state != ended {
			e.in.end()
		}
		e.in.forget()
		e.in.landed()
		if e.fd >= 0 && !e.close() {
			beside = append(beside, e.fd)
		}
	}
	delete(l.relay.links, l)
	l.conn.End(beside...)
}

func (l *link) info() *zerolog.Event { return l.event(l.relay.srv.Log.Info()) }
func (l *link) warn() *zerolog.Event { return l.event(l.relay.warn.Warn()) }

func (l *link) event(ev *zerolog.Event) *zerolog.Event {
	if ev == nil {
		return nil // Escape costs time
	}
	return logtext.WithCred(logtext.WithPeer(ev.Uint64("conn", l.conn.ID), l.peer), l.cred)
}
