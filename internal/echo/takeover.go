package echo

import (
	"slices"
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
	fd, err := socket.Claim()
	if err != nil {
		return err
	}
	s.claims = append(s.claims, socket)
	return s.Add(fd, &claim{s, socket, fd}, unix.EPOLLIN)
}

// A claim is a socket that its server is about to let go.
type claim struct {
	*server
	socket *uds.Socket
	fd     int
}

func (c *claim) Ready(uint32) {
	c.Remove(c.fd)
	c.claims = slices.DeleteFunc(c.claims, func(s *uds.Socket) bool { return s == c.socket })
	err := c.socket.Claimed()
	if err == nil {
		c.Log.Info().Str("listen", Escape(c.socket.Addr.String())).Msg("took over " + Escape(c.socket.Addr.Path))
		err = c.serve(c.socket)
	}
	if err != nil {
		_ = c.socket.Close()
		c.failed = err
	}
}

// A control is where another server asks for a socket.
type control struct {
	*server
	socket *uds.Socket
}

func (s *server) addControl(socket *uds.Socket) error {
	return s.Add(socket.Control, &control{s, socket}, unix.EPOLLIN)
}

func (c *control) Ready(uint32) {
	asked, err := c.socket.Offer()
	switch {
	case err == unix.EAGAIN:
		return
	case err != nil:
		c.acceptLater("hand over "+Escape(c.socket.Addr.Path), err)
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
			d.leaving = o // its replies come first, or a client would get them out of order
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

// refuseOffers tells who asks for any of sockets that he is too late.
func (s *server) refuseOffers(sockets ...*uds.Socket) {
	for _, o := range slices.Clone(s.offers) {
		if slices.Contains(sockets, o.socket) {
			o.forget()
			o.Remove(o.FD)
			o.Refuse()
		}
	}
}

// handOver lets datagram sockets go whose replies have all been taken.
func (s *server) handOver() {
	left := slices.DeleteFunc(s.datagrams, func(d *datagrams) bool {
		ready := d.leaving != nil && d.waiting == 0
		if ready {
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
