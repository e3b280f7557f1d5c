package echo

import (
	"errors"
	"slices"

	"github.com/udsecho/udsecho/internal/uds"
)

// hasFiles tells whether there is a socket file that somebody could remove.
func (s *server) hasFiles() bool {
	return s.drainUntil.IsZero() && len(s.listeners)+len(s.datagrams) > 0
}

// renew makes new sockets for those whose file somebody has removed: nobody
// could connect any more. Where something else has the path by now, the server
// ends as if it were told to.
func (s *server) renew() {
	if !s.acceptAgain.IsZero() {
		return // not all who had connected could be accepted
	}
	for _, ln := range slices.Clone(s.listeners) {
		if !ln.socket.Lost() || !s.replace(ln.socket) {
			continue
		}
		ln.acceptAll()
		s.listeners = slices.DeleteFunc(s.listeners, func(other *listener) bool { return other == ln })
		s.Remove(ln.socket.FD)
		_ = ln.socket.Close()
	}
	for _, d := range slices.Clone(s.datagrams) {
		if d.socket.Lost() {
			s.replace(d.socket) // clients that are connected to the old one go on using it
		}
	}
}

func (s *server) replace(old *uds.Socket) bool {
	control := old.Control
	renewed, err := old.Renew()
	path := Escape(old.Addr.Path)
	switch {
	case errors.Is(err, uds.ErrInUse), errors.Is(err, uds.ErrNotSocket):
		s.lost = err
		return false
	case err != nil:
		s.refuse(causeSystem, 0).Err(err).Msgf("%s was removed, and cannot be made again now: %v", path, err)
		return false
	}
	if control >= 0 {
		s.Remove(control)
	}
	s.Log.Warn().Str("listen", Escape(old.Addr.String())).Msgf("%s was removed: listening again", path)
	err = s.serve(renewed)
	if err == nil {
		err = s.offer(renewed)
	}
	if err != nil {
		_ = renewed.Close()
		s.failed = err
		return false
	}
	return true
}
