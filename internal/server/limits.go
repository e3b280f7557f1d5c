package server

import (
	"fmt"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Refuse counts n clients that are not served, and returns the event that logs
// it.
func (s *Server) Refuse(c Cause, n int) *zerolog.Event {
	return s.warn[c].Warn().Stringer("cause", c).Uint64("refused", s.Stats.Refuse(c, n))
}

// logs reports whether clients are logged, which costs time.
func (s *Server) logs() bool { return s.Log.GetLevel() <= zerolog.InfoLevel }

// opened counts n more open connections.
func (s *Server) opened(n int) {
	s.open += n
	s.Stats.Connections.Add(int64(n))
}

// count counts a connection, and gives it its number and its user.
func (s *Server) count(c *Conn, cred *unix.Ucred) {
	s.Stats.Accepted.Add(1)
	s.opened(1)
	s.lastID++
	c.ID = s.lastID
	if cred != nil {
		c.UID = int64(cred.Uid)
		s.perUser[cred.Uid]++
	}
}

// forget counts the end of a connection of a user, -1 if it is not known.
func (s *Server) forget(uid int64) {
	s.opened(-1)
	if uid < 0 {
		return
	}
	if s.perUser[uint32(uid)]--; s.perUser[uint32(uid)] == 0 {
		delete(s.perUser, uint32(uid))
	}
}

// allowed reports whether Allow admits a client. A client without credentials
// is denied.
func (s *Server) allowed(cred *unix.Ucred) bool {
	return s.Allow == nil || cred != nil && s.Allow(*cred)
}

// full returns which limit a further client of this user would exceed by more
// than beside; the text is empty if none.
func (s *Server) full(cred *unix.Ucred, beside int) (Cause, string) {
	if cred != nil {
		if n := s.perUser[cred.Uid]; s.MaxConnectionsPerUser > 0 && n >= s.MaxConnectionsPerUser+beside {
			return CauseUserConnections, fmt.Sprintf("connection limit per user (%d) reached", s.MaxConnectionsPerUser)
		}
	}
	if n := s.open; s.MaxConnections > 0 && n >= s.MaxConnections+beside {
		return CauseConnections, fmt.Sprintf("connection limit (%d) reached", s.MaxConnections)
	}
	return 0, ""
}

func notAllowed(cred *unix.Ucred) string {
	if cred == nil {
		return "the kernel does not report its user"
	}
	return fmt.Sprintf("user %d, group %d is not allowed", cred.Uid, cred.Gid)
}
