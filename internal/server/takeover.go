package server

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// follow makes the loop wait for the next step of the handover.
func (s *server) follow() error {
	s.unfollow()
	if s.handover == nil || s.handover.FD() < 0 {
		return nil
	}
	if err := s.loop.Add(s.handover.FD(), &steps{s}, unix.EPOLLIN); err != nil {
		return err
	}
	s.followed = s.handover.FD()
	return nil
}

// unfollow must be called before the handover's descriptor changes.
func (s *server) unfollow() {
	if s.followed >= 0 {
		s.loop.Remove(s.followed)
		s.followed = -1
	}
}

// steps takes the steps of the handover.
type steps struct{ server *server }

func (n *steps) Ready(uint32) { n.server.step() }

// step does what the handover's new state asks for, see [sock.State].
func (s *server) step() {
	s.goHome()
	s.unfollow()
	before := s.handover.State()
	state, err := s.handover.Step()
	switch {
	case err != nil && before != sock.Serving:
		s.failed = err
	case state == before:
	case state == sock.Claimed:
		s.takeOver()
	case state == sock.Yielding:
		s.prepare()
	case state == sock.Released:
		s.handedOver()
	case state == sock.Serving:
		s.takeBack(before)
	}
	if s.failed == nil {
		s.failed = s.follow()
	}
	if s.failed != nil || err == nil {
		return
	}
	const what = "hand over the sockets"
	if _, ok := err.(unix.Errno); ok { // no server was accepted
		s.acceptLater(what, err)
	} else {
		s.refuse(CauseSystem, 0).Err(err).Msgf("cannot %s: %s", what, logtext.Escape(err.Error()))
	}
}

// takeOver serves the sockets, which the other server has stopped serving, and
// then tells that server to release them. If this server dies before that, the
// other one continues to serve.
func (s *server) takeOver() {
	for _, socket := range s.sockets {
		if s.failed = s.serve(socket); s.failed != nil {
			return
		}
	}
	for _, socket := range s.sockets {
		s.config.Log.Info().Str("listen", logtext.Escape(socket.Addr.String())).Msg("took over " + logtext.Escape(socket.Addr.Path))
	}
	s.handover.Commit()
}

// asked reports whether another server has copies of the sockets' descriptors.
func (s *server) asked() bool {
	return s.handover != nil && (s.handover.State() == sock.Offering || s.claimed())
}

// claimed reports whether another server claims the sockets, or has them.
func (s *server) claimed() bool {
	return s.handover != nil && (s.handover.State() == sock.Yielding || s.handover.State() == sock.Yielded)
}

// prepare stops receiving datagrams, so that replies can be sent before the
// sockets are yielded.
func (s *server) prepare() {
	for _, socket := range s.sockets {
		s.config.Log.Info().Str("listen", logtext.Escape(socket.Addr.String())).Msg("handing over " + logtext.Escape(socket.Addr.Path))
	}
	s.emptyBy = time.Now().Add(s.config.DrainTimeout)
	for _, d := range s.datagrams {
		if !d.replaced {
			d.stop()
		}
	}
}

// handOver yields the sockets to a server that claims them, once clients have
// taken all replies or the replies have had their time. Otherwise the
// successor's replies would arrive first. Until then the server accepts
// connections as usual.
func (s *server) handOver(now time.Time) {
	if s.handover == nil || s.handover.State() != sock.Yielding {
		return
	}
	for _, d := range s.datagrams {
		if !d.replaced && d.waiting > 0 && !now.After(s.emptyBy) {
			return
		}
	}
	for _, d := range s.datagrams {
		if !d.replaced {
			d.dropAll(fmt.Errorf("it has not read for %v, the limit of a handover", s.config.DrainTimeout))
		}
	}
	for _, ln := range s.listeners {
		s.loop.Remove(ln.socket.FD())
	}
	s.handover.Yield()
}

// handedOver forgets the sockets, which a successor serves now.
func (s *server) handedOver() {
	s.handover = nil
	s.listeners = nil
	s.datagrams = slices.DeleteFunc(s.datagrams, func(d *datagrams) bool { return !d.replaced })
	s.leave()
}

// takeBack continues to serve after a successor has ended.
func (s *server) takeBack(from sock.State) {
	if from != sock.Offering {
		s.config.Log.Warn().Msg("the server that was taking over has ended; continuing to serve")
	}
	for _, d := range s.datagrams {
		if from != sock.Offering && !d.replaced && s.failed == nil {
			s.failed = s.loop.Add(d.socket.FD(), d, unix.EPOLLIN)
		}
	}
	for _, ln := range s.listeners {
		if from == sock.Yielded && s.failed == nil {
			s.failed = s.loop.Add(ln.socket.FD(), ln, unix.EPOLLIN)
		}
	}
	if s.failed == nil && !s.drainUntil.IsZero() {
		s.failed = s.drain()
	}
}

// refuseSuccessor keeps the sockets from a successor that does not own them
// yet.
func (s *server) refuseSuccessor() error {
	if s.handover == nil || s.pending() || s.handover.State() == sock.Yielded {
		return nil
	}
	s.unfollow()
	s.handover.Refuse()
	return s.follow()
}

// leave ends a server that has handed over its sockets, once its clients are
// served.
func (s *server) leave() {
	if !s.drainUntil.IsZero() {
		return
	}
	s.drainUntil = time.Now().Add(s.config.DrainTimeout)
	for _, d := range s.datagrams {
		_ = d.socket.Refuse()
		d.receiveAll()
		d.stop()
	}
}
