package echo

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/uds"
)

// begin serves a socket: at once, or where it is taken over from a server that
// runs, when that has stopped serving it.
func (s *server) begin(socket *uds.Socket) error {
	if !socket.TakenOver() {
		return s.serve(socket)
	}
	s.claims = append(s.claims, socket)
	slices.SortFunc(s.claims, func(a, b *uds.Socket) int { return strings.Compare(a.Addr.Path, b.Addr.Path) })
	return nil
}

// claimNext claims one socket at a time, in an order that all servers have, and
// hands over nothing before it has all. Together with a look whether any was
// refused already, before the first is claimed, one of two successors gets all
// sockets and the other none.
func (s *server) claimNext() error {
	if len(s.claims) == 0 {
		return s.offerAll()
	}
	fd := s.claims[0].Claim()
	return s.Add(fd, &claim{s, s.claims[0], fd}, unix.EPOLLIN)
}

func (s *server) offerAll() error {
	for _, ln := range s.listeners {
		if err := s.offer(ln.socket); err != nil {
			return err
		}
	}
	for _, d := range s.datagrams {
		if err := s.offer(d.socket); err != nil {
			return err
		}
	}
	return nil
}

// offer lets other servers ask for a socket, where it has a control.
func (s *server) offer(socket *uds.Socket) error {
	if socket.Control < 0 {
		return nil
	}
	return s.Add(socket.Control, &control{s, socket}, unix.EPOLLIN)
}

// A claim is a socket that its server is about to let go.
type claim struct {
	*server
	socket *uds.Socket
	fd     int
}

func (c *claim) Ready(uint32) {
	c.Remove(c.fd)
	c.claims = c.claims[1:]
	err := c.socket.Claimed()
	if err == nil {
		c.Log.Info().Str("listen", Escape(c.socket.Addr.String())).Msg("took over " + Escape(c.socket.Addr.Path))
		err = c.serve(c.socket)
	}
	if err != nil {
		_ = c.socket.Close()
		c.failed = err
		return
	}
	if c.failed = c.claimNext(); c.failed == nil && !c.drainUntil.IsZero() {
		c.failed = c.drain()
	}
}

// A control is where another server asks for a socket.
type control struct {
	*server
	socket *uds.Socket
}

func (c *control) Ready(uint32) {
	asked, err := c.socket.Offer()
	switch {
	case err == unix.EAGAIN:
		return
	case err != nil:
		what := "hand over " + Escape(c.socket.Addr.Path)
		if _, ok := err.(unix.Errno); ok { // nobody was accepted
			c.acceptLater(what, err)
		} else {
			c.refuse(CauseSystem, 0).Err(err).Msgf("cannot %s: %v", what, err)
		}
		return
	}
	o := &offer{c.server, asked, c.socket}
	c.offers = append(c.offers, o)
	if err := c.Add(o.FD, o, unix.EPOLLIN); err != nil {
		o.forget()
		o.Close()
	}
}

// An offer is a server that has copies of a socket's descriptors and may claim
// it.
type offer struct {
	*server
	*uds.Offer
	socket *uds.Socket
}

func (o *offer) Ready(uint32) {
	taken, err := o.Taken()
	switch {
	case err != nil: // it has gone, and nothing has changed
		o.forget()
		o.Remove(o.FD)
		o.Close()
		if !o.drainUntil.IsZero() {
			o.failed = o.drain()
		}
		return
	case !taken:
		return
	}
	o.forget()
	o.Remove(o.FD)
	o.refuseOffers(o.socket)
	o.Log.Info().Str("listen", Escape(o.socket.Addr.String())).Msg("handing over " + Escape(o.socket.Addr.Path))
	o.Remove(o.socket.Control)
	o.Release()
	o.Remove(o.socket.FD)
	for _, d := range o.datagrams {
		if d.socket == o.socket {
			// Its replies come first, or a client would get them out of order.
			d.leaving, d.leaveBy = o, time.Now().Add(o.DrainTimeout)
			return
		}
	}
	o.listeners = slices.DeleteFunc(o.listeners, func(ln *listener) bool { return ln.socket == o.socket })
	_ = o.socket.Close()
	o.Done()
	o.leave()
}

func (o *offer) forget() {
	o.offers = slices.DeleteFunc(o.offers, func(other *offer) bool { return other == o })
}

// refuseOffers tells who else asks for a socket that he is too late.
func (s *server) refuseOffers(socket *uds.Socket) {
	for _, o := range slices.Clone(s.offers) {
		if o.socket == socket {
			o.forget()
			o.Remove(o.FD)
			o.Refuse()
		}
	}
}

// offered tells whether a socket may be claimed at any moment.
func (s *server) offered(socket *uds.Socket) bool {
	return slices.ContainsFunc(s.offers, func(o *offer) bool { return o.socket == socket })
}

// handOver lets datagram sockets go whose replies have all been taken, or have
// had their time: all other clients wait meanwhile.
func (s *server) handOver(now time.Time) {
	left := slices.DeleteFunc(s.datagrams, func(d *datagrams) bool {
		ready := d.leaving != nil && (d.waiting == 0 || now.After(d.leaveBy))
		if ready {
			d.dropAll(fmt.Errorf("it has not read for the %v that a handover may take", s.DrainTimeout))
			_ = d.socket.Close()
			d.leaving.Done()
		}
		return ready
	})
	if len(left) < len(s.datagrams) {
		s.datagrams = left
		s.leave()
	}
}

// leave ends a server that has handed over its last socket, once its clients
// are served.
func (s *server) leave() {
	kept := slices.ContainsFunc(s.datagrams, func(d *datagrams) bool { return !d.replaced })
	if kept || len(s.listeners)+len(s.claims) > 0 || !s.drainUntil.IsZero() {
		return
	}
	s.drainUntil = time.Now().Add(s.DrainTimeout)
	for _, d := range s.datagrams {
		_ = d.socket.Refuse()
		d.receiveAll()
		d.stop()
	}
}
