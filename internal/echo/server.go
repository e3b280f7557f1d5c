// Package echo is the echo protocol on both sides: what is received is sent
// back, in the chunks in which it was received.
//
// The texts of its events are a contract, the transcript: a program that reads
// them finds the same words in every format and every version.
package echo

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/uds"
)

// A Server echoes to any number of clients at once.
type Server struct {
	Chunk          int           // size of one receive on a stream, in bytes
	MaxConnections int           // further clients are turned away; 0: no limit
	DrainTimeout   time.Duration // how long running echoes may take once the server is told to stop
	Log            zerolog.Logger
}

// Serve serves sockets, which it takes over, until ctx ends. Then it removes
// the socket files, still accepts who had connected before, lets every echo
// run to its end or to the drain timeout, and returns nil.
func (s *Server) Serve(ctx context.Context, sockets ...*uds.Socket) error {
	l := &loop{wake: -1, epoll: -1}
	e := &server{Server: s, loop: l, buf: make([]byte, s.Chunk), uid: uint32(os.Geteuid())}
	e.warn = s.Log.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second})
	defer e.close()
	for _, socket := range sockets {
		e.listeners = append(e.listeners, &listener{server: e, socket: socket})
	}
	if err := l.start(); err != nil {
		return err
	}
	for _, ln := range e.listeners {
		s.Log.Info().Str("listen", ln.socket.Addr.String()).Msg("starting up on " + Escape(ln.socket.Addr.Path))
		if err := l.add(ln.socket.FD, ln, unix.EPOLLIN); err != nil {
			return err
		}
	}
	s.Log.Info().Msg("waiting for a connection")

	// The loop stays on one thread: handing it over would cost more than an
	// echo takes.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer context.AfterFunc(ctx, l.interrupt)()
	return e.run(ctx)
}

// server is what a running Server knows. One goroutine owns all of it.
type server struct {
	*Server
	*loop
	listeners   []*listener
	open        int // connections
	lastID      uint64
	buf         []byte // one receive, shared by all connections
	uid         uint32
	warn        zerolog.Logger // for what a client can cause as often as it likes
	acceptAgain time.Time      // while the system lacks descriptors
	drainUntil  time.Time
}

func (s *server) run(ctx context.Context) error {
	for {
		if err := s.wait(s.timeout()); err != nil {
			return err
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil && s.drainUntil.IsZero():
			s.drainUntil = now.Add(s.DrainTimeout)
			if err := s.drain(); err != nil {
				return err
			}
		case !s.acceptAgain.IsZero() && now.After(s.acceptAgain):
			s.acceptAgain = time.Time{}
			s.watchListeners(unix.EPOLLIN)
		}
		if !s.drainUntil.IsZero() {
			if s.open == 0 {
				return nil
			}
			if now.After(s.drainUntil) {
				s.Log.Warn().Int("connections", s.open).Dur("drain_timeout", s.DrainTimeout).
					Msg("drain timeout is over: closing the connections that are left")
				return nil
			}
		}
	}
}

// timeout is how long the loop may sleep, -1 for as long as nothing happens.
func (s *server) timeout() time.Duration {
	switch {
	case !s.drainUntil.IsZero():
		return max(time.Until(s.drainUntil), 0)
	case !s.acceptAgain.IsZero():
		return max(time.Until(s.acceptAgain), 0)
	default:
		return -1
	}
}

// drain turns new clients away. The files go first, so that a client finds no
// socket rather than a closed one; who had connected by then is served.
func (s *server) drain() error {
	s.Log.Debug().Int("connections", s.open).Msg("draining")
	for _, ln := range s.listeners {
		ln.socket.Unlink()
		if err := ln.socket.Refuse(); err != nil {
			return err
		}
		ln.acceptAll()
		s.remove(ln.socket.FD)
		if err := ln.socket.Close(); err != nil {
			return err
		}
	}
	s.listeners, s.acceptAgain = nil, time.Time{}
	return nil
}

func (s *server) close() {
	for _, ln := range s.listeners {
		_ = ln.socket.Close()
	}
	for _, h := range s.handlers {
		if c, ok := h.(*conn); ok {
			_ = unix.Close(c.fd)
		}
	}
	s.loop.close()
}

func (s *server) watchListeners(events uint32) {
	for _, ln := range s.listeners {
		s.watch(ln.socket.FD, events)
	}
}

// healthName is how the name of a client that checks the server's health
// starts. It is believed only of a client that runs as the server's own user,
// and all that it changes is that the client is not mentioned at info level.
const healthName = "@udsecho.healthcheck."

func (s *server) isHealthCheck(peer string, cred *unix.Ucred) bool {
	return strings.HasPrefix(peer, healthName) && cred != nil && cred.Uid == s.uid
}
