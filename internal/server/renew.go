package server

import (
	"cmp"
	"errors"
	"slices"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// hasFiles reports whether there is a socket file that other processes could
// remove.
func (s *Server) hasFiles() bool {
	return !s.stopping() && len(s.listeners)+len(s.datagrams) > 0
}

// renew makes new sockets for those whose file was removed, because no client
// could connect to them any more. If something else is at the path by now, the
// server ends as if it had been told to stop.
func (s *Server) renew() {
	if s.phase == serving && s.acceptAgain.IsZero() { // a successor finds the missing file itself; and all waiting connections must be accepted first
		s.atHome(s.renewSockets)
	}
}

func (s *Server) renewSockets() {
	s.reportTaps()
	for _, ln := range slices.Clone(s.listeners) {
		if !ln.socket.Lost() {
			continue
		}
		ln.acceptAll()
		if !s.acceptAgain.IsZero() {
			return
		}
		if !s.replace(ln.socket) {
			continue
		}
		// As in drain: the file may have been moved, and clients may still
		// connect to it.
		_ = ln.socket.Refuse()
		ln.acceptAll()
		s.listeners = slices.DeleteFunc(s.listeners, func(other *listener) bool { return other == ln })
		s.Loop.Remove(ln.socket.FD())
		_ = ln.socket.Close()
	}
	for _, d := range slices.Clone(s.datagrams) {
		if d.socket.Lost() {
			d.replaced = s.replace(d.socket) // clients that are connected to it continue to use it
		}
	}
	s.retire()
	s.renewControl()
}

// reportTaps logs once that `uds tap` has put its own socket in the place of
// one, which otherwise would look like theft.
func (s *Server) reportTaps() {
	for i := range s.services {
		of := &s.services[i]
		before := of.tapped
		if own := of.Unix(); own != nil {
			of.tapped = own.Tapped()
		}
		if of.tapped && !before {
			s.Log.Info().Str("listen", logtext.Escape(of.Addr.String())).Msgf("%s is tapped: its clients come through uds tap now", logtext.Escape(of.Addr.Path))
		}
	}
}

// maxReplaced is how many replaced datagram sockets stay open for the clients
// that are connected to them. The kernel does not report whether there are any:
// they may be in other network namespaces.
const maxReplaced = 4

// retire closes the replaced sockets beyond maxReplaced, those first that have
// been silent for longest. All that has been sent to such a socket gets its
// reply first. Its clients learn it as they learn the end of a server, by
// ECONNREFUSED, and find the new socket when they connect again.
func (s *Server) retire() {
	var replaced []*datagrams
	for _, d := range s.datagrams {
		if d.replaced && !d.retired {
			replaced = append(replaced, d)
		}
	}
	slices.SortStableFunc(replaced, func(a, b *datagrams) int { return cmp.Compare(b.used, a.used) })
	for _, d := range replaced[min(len(replaced), maxReplaced):] {
		d.retired = true
		_ = d.socket.Refuse()
		d.drain()
	}
	s.datagrams = slices.DeleteFunc(s.datagrams, func(d *datagrams) bool {
		gone := d.retired && !d.paused && d.waiting == 0
		if gone {
			d.close()
		}
		return gone
	})
}

// replace makes a new socket in place of one whose file was removed.
func (s *Server) replace(old *addr.Socket) bool {
	if s.fail(s.refuseSuccessor()) { // the successor has the old socket
		return false
	}
	renewed, err := old.Renew()
	path := logtext.Escape(old.Addr.Path)
	switch {
	case errors.Is(err, sock.ErrInUse), errors.Is(err, sock.ErrNotSocket):
		s.displaced = err
		return false
	case err != nil:
		s.Refuse(CauseSystem, 0).Err(err).Msgf("%s was removed, and cannot be recreated now: %s", path, logtext.Escape(err.Error()))
		return false
	}
	s.Log.Warn().Str("listen", logtext.Escape(old.Addr.String())).Msgf("%s was removed: listening again", path)
	of := &s.services[slices.IndexFunc(s.services, func(of Service) bool { return of.Socket == old })]
	of.Socket = renewed
	if s.Handover != nil {
		s.Handover.Replace(old.Unix(), renewed.Unix())
	}
	if s.fail(s.serve(*of)) {
		_ = renewed.Close()
		return false
	}
	return true
}

// renewControl recreates the control socket if its file was removed. If that
// fails, the server continues to serve, but no other server can take over
// meanwhile.
func (s *Server) renewControl() {
	if s.Handover == nil || !s.Handover.Lost() {
		return
	}
	s.unfollow()
	err := s.Handover.Renew()
	if err == nil {
		err = s.follow()
	}
	if err != nil {
		s.Refuse(CauseSystem, 0).Err(err).Msg(logtext.Escape(err.Error()))
	}
}
