package server

import (
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// acceptPause is how long a server without free descriptors waits before it
// accepts again. Without this pause, accept would fail in a busy loop.
const acceptPause = 100 * time.Millisecond

// A listener accepts connections.
type listener struct {
	server   *Server
	socket   *addr.Socket
	handler  Handler
	noRights bool // of its connections, see [sock.RefusesRights]

	most int    // clients to accept at once
	full uint64 // the turn after one in which as many were accepted
}

// Ready accepts about as many clients as waited the last time. In vain,
// accept(2) costs a fifth of a short connection. Open connections must get their
// turn, hence the limit.
func (ln *listener) Ready(uint32) {
	turn := ln.server.Loop.Turn()
	if ln.full == turn { // more are waiting
		ln.most = min(2*ln.most, 64)
	}
	ln.most = max(ln.most, 1)
	if !ln.accept(ln.most) {
		ln.full = turn + 1
	}
}

// acceptAll accepts all waiting connections, and reports whether it could: see
// acceptLater.
func (ln *listener) acceptAll() (all bool) { return ln.accept(-1) }

// accept accepts waiting connections, up to limit if it is not negative. It
// reports whether it has found that none is left waiting.
func (ln *listener) accept(limit int) (all bool) {
	for n := 0; n != limit; n++ {
		if ln.server.rejected >= maxRejected {
			ln.server.acceptLater("accept", errClosing)
			return false
		}
		fd, err := raw.Accept(ln.socket.FD())
		switch err {
		case nil:
			ln.welcome(fd)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN, unix.EINVAL: // EINVAL: the listener was shut down
			ln.most = n
			return true
		default:
			ln.server.acceptLater("accept", err)
			return false
		}
	}
	return false
}

// turnAwayAll closes the waiting connections that could not be accepted
// because descriptors were missing, and counts them. It is called once
// everything else is closed, which frees descriptors: at least those of the
// loop.
func (s *Server) turnAwayAll() {
	n := 0
	for _, ln := range s.listeners {
		if ln.socket.Shared() {
			continue // the other servers serve them
		}
		_ = ln.socket.Refuse()
		for range 1 << 16 { // a TCP socket is not shut down, and clients may continue to connect
			fd, err := raw.Accept(ln.socket.FD())
			if err == unix.EMFILE && raiseOpenFiles() {
				continue
			}
			if err == unix.EAGAIN || err == unix.EINVAL {
				break
			}
			if err == nil {
				n++
				s.reject(fd, ln.noRights, nil)
			} else if err != unix.EINTR && err != unix.ECONNABORTED {
				s.Log.Warn().Err(err).Msgf("cannot count the waiting clients: accept: %s", logtext.Escape(err.Error()))
				break
			}
		}
	}
	if n > 0 { // not rate limited: it is logged once
		s.Log.Warn().Stringer("cause", CauseSystem).Uint64("refused", s.Stats.Refuse(CauseSystem, n)).
			Msgf("rejected %d waiting clients: no descriptor became free for them", n)
	}
}

// raiseOpenFiles raises the limit of open files to its hard limit, as Go does
// when a program starts, and reports whether it had been lowered since.
func raiseOpenFiles() bool {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur >= limit.Max {
		return false
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil
}

// acceptLater waits until the system has the missing resource.
func (s *Server) acceptLater(what string, err error) {
	s.Refuse(CauseSystem, 0).Err(err).Msgf("cannot %s: %s: trying again in %v", what, logtext.Escape(err.Error()), acceptPause)
	s.watchListeners(0)
	s.names.forgetAll() // their descriptors may be what it lacks
	s.acceptAgain = time.Now().Add(acceptPause)
}

// welcome rejects a client or hands it to its handler.
func (ln *listener) welcome(fd int) {
	s := ln.server
	c := Conn{ln: ln, fd: int32(fd), level: zerolog.InfoLevel, UID: -1}
	var cred *unix.Ucred
	if c.Type().Unix() {
		cred, _ = sock.PeerCred(fd)
	}
	if why, text := ln.refusal(fd, cred); text != "" {
		if ev := s.Refuse(why, 1); ev != nil { // there may be thousands
			logtext.WithCred(logtext.WithPeer(ev, c.Peer()), cred).Msg("rejected a client: " + text)
		}
		s.reject(fd, ln.noRights, cred)
		return
	}
	if ln.socket.Shared() {
		sock.DropAncillary(fd)
	}
	switch c.Type() {
	case addr.Stream:
		sock.InlineUrgent(fd)
	case addr.TCP: // TCP connections inherit SO_OOBINLINE from the listener
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	s.count(&c, cred)
	if s.logs() {
		c.peer = sock.PeerName(fd)
		if isHealthCheck(c.peer, cred) {
			c.level = zerolog.DebugLevel
		}
	}
	if ev := c.Event(); ev != nil {
		logtext.WithCred(ev, cred).Msg("connection from")
	}
	ln.handler.Serve(c)
}

// refusal returns why a connected client is not served; the text is empty if
// it is served.
func (ln *listener) refusal(fd int, cred *unix.Ucred) (Cause, string) {
	t := ln.socket.Addr.Type
	if t.Unix() && !ln.server.allowed(cred) {
		return CauseUser, notAllowed(cred)
	}
	why, text := ln.server.full(cred, 0)
	if text == "" || !t.Unix() {
		return why, text
	}
	if isHealthCheck(sock.PeerName(fd), cred) {
		return ln.server.full(cred, HealthChecks)
	}
	return why, text
}

func (s *Server) watchListeners(events uint32) {
	for _, ln := range s.listeners {
		s.Loop.Watch(ln.socket.FD(), events)
	}
	if s.followed >= 0 && s.Handover.State() == sock.Serving {
		s.Loop.Watch(s.followed, events)
	}
}
