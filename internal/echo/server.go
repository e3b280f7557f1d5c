// Package echo is the echo protocol on both sides: what is received is sent
// back, in the chunks in which it was received.
//
// The texts of its events are a contract, the transcript: a program that reads
// them finds the same words in every format and every version.
package echo

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/internal/uds"
)

// A Server echoes to any number of clients at once.
type Server struct {
	Chunk          int           // size of one receive on a stream, in bytes
	Spin           time.Duration // how long to go on asking before sleeping, see package loop; 0: not at all
	SendBuffer     int           // SO_SNDBUF of seqpacket connections, in bytes; 0: the system's
	MaxConnections int           // further clients are turned away; 0: no limit
	DrainTimeout   time.Duration // how long running echoes may take once the server is told to stop
	Log            zerolog.Logger
}

// Serve serves sockets, which it takes over, until ctx ends. Then it removes
// the socket files, still accepts who had connected before, lets every echo
// run to its end or to the drain timeout, and returns nil.
func (s *Server) Serve(ctx context.Context, sockets ...*uds.Socket) error {
	l, err := loop.New(s.Spin)
	if err != nil {
		for _, socket := range sockets {
			_ = socket.Close()
		}
		return err
	}
	e := &server{Server: s, Loop: l, uid: uint32(os.Geteuid())}
	e.warn = s.Log.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second})
	defer e.close()
	waiting := "waiting for a message"
	for i, socket := range sockets {
		s.Log.Info().Str("listen", Escape(socket.Addr.String())).Msg("starting up on " + Escape(socket.Addr.Path))
		if err := e.serve(socket); err != nil {
			for _, socket := range sockets[i:] {
				_ = socket.Close()
			}
			return err
		}
		if socket.Addr.Type.Connects() {
			waiting = waitingConnection
		}
	}
	s.Log.Info().Msg(waiting)

	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { l.Interrupt(); close(woken) })
	defer func() {
		if !stop() {
			<-woken // it must not write to a descriptor that is closed by then
		}
	}()
	return e.run(ctx)
}

const waitingConnection = "waiting for a connection"

// serve adds a socket to the loop, with the buffers that its type needs.
func (s *server) serve(socket *uds.Socket) error {
	t := socket.Addr.Type
	if !t.Messages() && s.buf == nil {
		s.buf = make([]byte, s.Chunk)
	}
	if t.Messages() && s.receiver == nil {
		s.receiver = uds.NewReceiver(uds.MaxMessage())
	}
	if t.Connects() {
		ln := &listener{server: s, socket: socket}
		s.listeners = append(s.listeners, ln)
		return s.Add(socket.FD, ln, unix.EPOLLIN)
	}
	d, err := newDatagrams(s, socket)
	if err != nil {
		return err
	}
	s.datagrams = append(s.datagrams, d)
	return s.Add(socket.FD, d, unix.EPOLLIN)
}

// server is what a running Server knows. One goroutine owns all of it.
type server struct {
	*Server
	*loop.Loop
	listeners   []*listener
	datagrams   []*datagrams
	open        int // connections
	lastID      uint64
	buf         []byte // one receive, shared by all stream connections
	receiver    *uds.Receiver
	uid         uint32
	warn        zerolog.Logger // for what a client can cause as often as it likes
	acceptAgain time.Time      // while the system lacks descriptors
	drainUntil  time.Time
}

func (s *server) run(ctx context.Context) error {
	for {
		if err := s.Wait(s.timeout()); err != nil {
			return err
		}
		now := time.Now()
		if ctx.Err() != nil && s.drainUntil.IsZero() {
			s.drainUntil = now.Add(s.DrainTimeout)
			if err := s.drain(); err != nil {
				return err
			}
		}
		if !s.acceptAgain.IsZero() && now.After(s.acceptAgain) {
			s.acceptAgain = time.Time{}
			s.watchListeners(unix.EPOLLIN)
		}
		waiting := 0
		for _, d := range s.datagrams {
			d.sendWaiting(now)
			waiting += d.waiting
		}
		if s.drainUntil.IsZero() {
			continue
		}
		if s.open+waiting == 0 {
			return nil
		}
		if now.After(s.drainUntil) {
			s.Log.Warn().Int("connections", s.open).Int("replies", waiting).Dur("drain_timeout", s.DrainTimeout).
				Msg("drain timeout is over: closing what is left")
			return nil
		}
	}
}

// timeout is how long the loop may sleep, -1 for as long as nothing happens.
func (s *server) timeout() time.Duration {
	var first time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	earlier(s.drainUntil)
	earlier(s.acceptAgain)
	for _, d := range s.datagrams {
		earlier(d.tryAgain)
	}
	if first.IsZero() {
		return -1
	}
	return max(time.Until(first), 0)
}

// drain turns new clients away. The files go first, so that a client finds no
// socket rather than a closed one; who had connected by then is served.
func (s *server) drain() error {
	s.Log.Debug().Int("connections", s.open).Msg("draining")
	for _, ln := range s.listeners {
		ln.socket.Unlink()
		ln.acceptAll()
		if err := ln.socket.Refuse(); err != nil {
			return err
		}
		ln.acceptAll()
		s.Remove(ln.socket.FD)
		if err := ln.socket.Close(); err != nil {
			return err
		}
	}
	s.listeners, s.acceptAgain = nil, time.Time{}
	for _, d := range s.datagrams {
		d.socket.Unlink()
		if err := d.socket.Refuse(); err != nil {
			return err
		}
		d.receiveAll()
		s.Remove(d.socket.FD) // its replies may still be waiting
	}
	return nil
}

func (s *server) close() {
	for _, ln := range s.listeners {
		_ = ln.socket.Close()
	}
	for _, d := range s.datagrams {
		_ = d.socket.Close()
	}
	for h := range s.Handlers {
		switch c := h.(type) {
		case *conn:
			_ = unix.Close(c.fd)
		case *records:
			_ = unix.Close(c.fd)
		}
	}
	s.Close()
}

func (s *server) watchListeners(events uint32) {
	for _, ln := range s.listeners {
		s.Watch(ln.socket.FD, events)
	}
}

// HealthName is how the name of a client that checks the server's health
// starts. It is believed only of a client that runs as the server's own user,
// and all that it changes is that the client is not mentioned at info level.
const HealthName = "@udsecho.healthcheck."

func (s *server) isHealthCheck(peer string, cred *unix.Ucred) bool {
	return strings.HasPrefix(peer, HealthName) && cred != nil && cred.Uid == s.uid
}

// about is an event about a client, or nil where its level is off: a health
// check is not mentioned at info level.
func (s *server) about(quiet bool) *zerolog.Event {
	level := zerolog.InfoLevel
	if quiet {
		level = zerolog.DebugLevel
	}
	if s.Log.GetLevel() > level {
		return nil
	}
	return s.Log.WithLevel(level)
}
