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
func (s *Server) follow() error {
	s.unfollow()
	if s.Handover == nil || s.Handover.FD() < 0 {
		return nil
	}
	if err := s.Loop.Add(s.Handover.FD(), &steps{s}, unix.EPOLLIN); err != nil {
		return err
	}
	s.followed = s.Handover.FD()
	return nil
}

// unfollow must be called before the handover's descriptor changes.
func (s *Server) unfollow() {
	if s.followed >= 0 {
		s.Loop.Remove(s.followed)
		s.followed = -1
	}
}

// steps takes the steps of the handover.
type steps struct{ server *Server }

func (n *steps) Ready(uint32) { n.server.step() }

// step takes the handover's next step, and enters the phase that its new state
// asks for, see [sock.State].
func (s *Server) step() {
	s.unfollow()
	before := s.Handover.State()
	var state sock.State
	var err error
	s.atHome(func() { state, err = s.Handover.Step() })
	switch {
	case err != nil && before != sock.Serving:
		s.fail(err)
	case state == before:
	case state == sock.Claimed:
		s.enter(serving)
	case state == sock.Yielding:
		s.enter(yielding)
	case state == sock.Released:
		s.enter(draining)
	case state == sock.Serving:
		if s.phase != serving { // otherwise the successor has claimed nothing yet
			s.enter(serving)
		}
		if s.stopping() && s.failed == nil {
			s.enter(draining)
		}
	}
	if s.failed == nil {
		s.fail(s.follow())
	}
	if s.failed != nil || err == nil {
		return
	}
	const what = "hand over the sockets"
	if _, ok := err.(unix.Errno); ok { // no server was accepted
		s.acceptLater(what, err)
	} else {
		s.Refuse(CauseSystem, 0).Err(err).Msgf("cannot %s: %s", what, logtext.Escape(err.Error()))
	}
}

// takeOver serves the sockets, which the other server has stopped serving, and
// then tells that server to release them. If this server dies before that, the
// other one continues to serve.
func (s *Server) takeOver() {
	for _, of := range s.services {
		if s.fail(s.serve(of)) {
			return
		}
	}
	s.logSockets("took over")
	s.Handover.Commit()
}

func (s *Server) logSockets(what string) {
	for _, of := range s.services {
		s.Log.Info().Str("listen", logtext.Escape(of.Addr.String())).Msg(what + " " + logtext.Escape(of.Addr.Path))
	}
}

// asked reports whether another server has copies of the sockets' descriptors.
func (s *Server) asked() bool {
	return s.phase == yielding || s.phase == yielded || s.Handover != nil && s.Handover.State() == sock.Offering
}

// stopReceiving stops receiving datagrams, so that replies can be sent before
// the sockets are yielded.
func (s *Server) stopReceiving() {
	s.logSockets("handing over")
	s.yieldBy = time.Now().Add(s.DrainTimeout)
	for _, d := range s.datagrams {
		if !d.replaced {
			d.stop()
		}
	}
}

// yield yields the sockets to a server that claims them, once clients have taken
// all replies or the replies have had their time. Otherwise the successor's
// replies would arrive first. Until then the server accepts connections as
// usual.
func (s *Server) yield(now time.Time) {
	if s.phase != yielding {
		return
	}
	for _, d := range s.datagrams {
		if !d.replaced && d.waiting > 0 && !now.After(s.yieldBy) {
			return
		}
	}
	for _, d := range s.datagrams {
		if !d.replaced {
			d.dropAll(fmt.Errorf("it has not read for %v, the limit of a handover", s.DrainTimeout))
		}
	}
	s.enter(yielded)
}

// handedOver forgets the sockets, which a successor serves now, and ends the
// server once its clients are served.
func (s *Server) handedOver() {
	s.Handover = nil
	s.listeners = nil
	s.datagrams = slices.DeleteFunc(s.datagrams, func(d *datagrams) bool { return !d.replaced })
	if s.stopping() {
		return
	}
	s.stopBy = time.Now().Add(s.DrainTimeout)
	for _, d := range s.datagrams {
		_ = d.socket.Refuse()
		d.receiveAll()
		d.stop()
	}
}

// takeBack continues to serve after a successor that claimed the sockets has
// ended.
func (s *Server) takeBack(from phase) {
	s.Log.Warn().Msg("the server that was taking over has ended; continuing to serve")
	for _, d := range s.datagrams {
		if !d.replaced {
			s.fail(s.Loop.Add(d.socket.FD(), d, unix.EPOLLIN))
		}
	}
	for _, ln := range s.listeners {
		if from == yielded {
			s.fail(s.Loop.Add(ln.socket.FD(), ln, unix.EPOLLIN))
		}
	}
}

// refuseSuccessor keeps the sockets from a successor that has not claimed them
// yet.
func (s *Server) refuseSuccessor() error {
	if s.Handover == nil {
		return nil
	}
	s.unfollow()
	s.Handover.Refuse()
	return s.follow()
}
