package echoserver

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/stats"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/uds"
)

// claim asks the running server to stop serving the sockets.
func (s *server) claim() error {
	s.claimed = s.handover.Claim()
	return s.loop.Add(s.claimed, &claim{s}, unix.EPOLLIN)
}

// A claim is the connection to the server whose sockets are taken over.
type claim struct{ server *server }

func (c *claim) Ready(uint32) { c.server.takeOver() }

// takeOver serves the sockets, if the other server has stopped serving them,
// and then tells that server to release them. If this server dies before that,
// the other one continues to serve.
func (s *server) takeOver() {
	err := s.handover.Claimed()
	if err == unix.EAGAIN {
		return
	}
	s.loop.Remove(s.claimed)
	for _, socket := range s.sockets {
		if err == nil {
			err = s.serve(socket)
		}
	}
	if err != nil {
		s.failed = err
		return
	}
	for _, socket := range s.sockets {
		s.config.Log.Info().Str("listen", transcript.Escape(socket.Addr.String())).Msg("took over " + transcript.Escape(socket.Addr.Path))
	}
	s.handover.Commit()
	s.failed = s.offer()
}

// offer lets other servers ask for the sockets.
func (s *server) offer() error {
	return s.loop.Add(s.handover.Control(), &control{s}, unix.EPOLLIN)
}

// A control is the control socket, on which another server asks for the
// sockets. Only one server at a time gets descriptors: if two had them,
// neither could know whether the other owns the sockets.
type control struct{ server *server }

func (c *control) Ready(uint32) {
	s := c.server
	asked, err := s.handover.Offer()
	switch {
	case err == unix.EAGAIN:
		return
	case err != nil:
		const what = "hand over the sockets"
		if _, ok := err.(unix.Errno); ok { // no server was accepted
			s.acceptLater(what, err)
		} else {
			s.refuse(stats.System, 0).Err(err).Msgf("cannot %s: %s", what, transcript.Escape(err.Error()))
		}
		return
	}
	s.successor = &successor{server: s, offer: asked}
	if err := s.loop.Add(asked.FD(), s.successor, unix.EPOLLIN); err != nil {
		s.failed = err
		return
	}
	s.loop.Watch(s.handover.Control(), 0)
}

// A successor is a server that has copies of the sockets' descriptors, and may
// claim them.
type successor struct {
	server  *server
	offer   *uds.Offer
	claims  bool      // datagram sockets no longer receive
	emptyBy time.Time // when waiting replies have had their time
	owns    bool      // nothing is accepted any more either
}

func (n *successor) Ready(uint32) {
	s := n.server
	switch step := n.offer.Next(); {
	case step == uds.Waits:
	case step == uds.Claims && !n.claims:
		for _, socket := range s.sockets {
			s.config.Log.Info().Str("listen", transcript.Escape(socket.Addr.String())).Msg("handing over " + transcript.Escape(socket.Addr.Path))
		}
		n.claims, n.emptyBy = true, time.Now().Add(s.config.DrainTimeout)
		for _, d := range s.datagrams {
			if !d.replaced {
				d.stop()
			}
		}
	case step == uds.Serves && n.owns:
		s.handedOver()
	default:
		s.takeBack()
	}
}

// handOver yields the sockets to a server that claims them, once clients have
// taken all replies or the replies have had their time. Otherwise the
// successor's replies would arrive first. Until then the server accepts
// connections as usual.
func (s *server) handOver(now time.Time) {
	n := s.successor
	if n == nil || !n.claims || n.owns {
		return
	}
	for _, d := range s.datagrams {
		if !d.replaced && d.waiting > 0 && !now.After(n.emptyBy) {
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
	n.owns = true
	n.offer.Yield()
}

// handedOver releases the sockets that a successor serves now.
func (s *server) handedOver() {
	s.goHome()
	s.dismiss()
	s.forgetControl()
	s.handover.Release()
	s.handover = nil
	s.listeners = nil
	s.datagrams = slices.DeleteFunc(s.datagrams, func(d *datagrams) bool { return !d.replaced })
	s.leave()
}

// takeBack continues to serve after a successor has ended.
func (s *server) takeBack() {
	s.goHome()
	n := s.successor
	s.dismiss()
	if n.claims {
		s.config.Log.Warn().Msg("the server that was taking over has ended; continuing to serve")
	}
	if n.owns {
		s.failed = s.handover.TakeBack()
	}
	for _, d := range s.datagrams {
		if n.claims && !d.replaced && s.failed == nil {
			s.failed = s.loop.Add(d.socket.FD(), d, unix.EPOLLIN)
		}
	}
	for _, ln := range s.listeners {
		if n.owns && s.failed == nil {
			s.failed = s.loop.Add(ln.socket.FD(), ln, unix.EPOLLIN)
		}
	}
	s.loop.Watch(s.handover.Control(), unix.EPOLLIN)
	if s.failed == nil && !s.drainUntil.IsZero() {
		s.failed = s.drain()
	}
}

// forgetControl removes the control socket from the loop.
func (s *server) forgetControl() {
	if fd := s.handover.Control(); fd >= 0 {
		s.loop.Remove(fd)
	}
}

// dismiss forgets the successor.
func (s *server) dismiss() {
	s.loop.Remove(s.successor.offer.FD())
	s.successor.offer.Close()
	s.successor = nil
}

// refuseSuccessor keeps the sockets from a successor that does not own them
// yet.
func (s *server) refuseSuccessor() {
	if s.successor != nil {
		s.loop.Remove(s.successor.offer.FD())
		s.successor.offer.Refuse()
		s.successor = nil
		s.loop.Watch(s.handover.Control(), unix.EPOLLIN)
	}
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
