// Package echoserver is the server's side of the echo: one event loop for the
// sockets of all types. It handles the connections, the limits, the drain at
// the end, and the handover to a successor.
//
// The texts of its events are a contract, the transcript: a program that reads
// them finds the same words in every format and every version.
package server

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Config configures a server that echoes to any number of clients at once.
type Config struct {
	Chunk        int           // size of one receive on a stream, in bytes
	Spin         time.Duration // how long to poll before sleeping, see package loop; 0: not at all
	SendBuffer   int           // SO_SNDBUF of connections, in bytes; 0: the system's default
	Memory       *Pool         // what all clients together may make the server hold; nil: no bounds
	DrainTimeout time.Duration // how long echoes in flight may take once the server is told to stop

	// Further clients are rejected, except [HealthChecks]; 0: no limit. TCP
	// connections have no user, so only the first limit applies to them.
	MaxConnections, MaxConnectionsPerUser int
	// Clients that send nothing for this long, or read nothing of what the
	// server has to send, are disconnected within two seconds more; 0: no
	// limit.
	IdleTimeout, WriteTimeout time.Duration
	// Allow reports whether a client may be served, by the credentials that
	// the kernel reports. TCP and UDP sockets have none. nil: all clients may.
	Allow func(unix.Ucred) bool
	// Files serves a connection of a files: socket, and takes it over. It
	// calls done, from any goroutine, when it has closed the connection. A
	// quiet connection is not logged at info level.
	Files func(fd int, quiet bool, done func())
	// FilesSweep is called about once a second with a time that grows, and
	// whether this process was stopped meanwhile; nil: there are no files.
	FilesSweep func(now time.Duration, stopped bool)
	// Relay takes connections and messages in place of the echo, except health
	// checks, which are echoed; nil: the server echoes everything.
	Relay Relay
	// RelayFiles hands descriptors that come with datagrams to Relay. Without
	// it, such a message is dropped.
	RelayFiles bool
	// OwnDirectory lets the server change the working directory of the
	// process, because none of its paths is relative. The server then sends
	// datagram replies faster.
	OwnDirectory bool
	// Handover holds the sockets, if they come from a running server or can go
	// to the next one; nil: neither.
	Handover *sock.Handover
	Stats    *Stats // the counters; nil if they are not needed
	Log      zerolog.Logger
}

// Serve serves sockets, and takes them over, until ctx ends. Then it removes
// the socket files, accepts the connections that were made before, lets every
// echo continue to its end or to the drain timeout, and returns nil.
func (c Config) Serve(ctx context.Context, sockets ...*addr.Socket) error {
	l, err := loop.New(c.Spin)
	if err != nil {
		for _, socket := range sockets {
			_ = socket.Close()
		}
		return err
	}
	if c.Relay != nil {
		c.Relay.Begin(l)
	}
	s := newServer(c, l)
	s.sockets = slices.Clone(sockets)
	defer s.close()
	waiting := "waiting for a message"
	for i, socket := range sockets {
		c.Log.Info().Str("listen", logtext.Escape(socket.Addr.String())).Msg("starting up on " + logtext.Escape(socket.Addr.Path))
		if !s.pending() {
			err = s.serve(socket)
		}
		if err != nil {
			for _, socket := range sockets[i:] {
				_ = socket.Close()
			}
			return err
		}
		if socket.Addr.Type.Connects() {
			waiting = waitingConnection
		}
	}
	c.Log.Info().Msg(waiting)
	switch {
	case s.pending() && ctx.Err() != nil:
		return nil // the server that serves them may continue
	case s.pending():
		s.handover.Claim()
	}
	if err := s.follow(); err != nil {
		return err
	}

	defer l.InterruptAt(ctx)()
	s.ownThread = slices.ContainsFunc(sockets, func(socket *addr.Socket) bool { return socket.Addr.Type == addr.Datagram })
	if s.ownThread {
		return onOwnThread(func() error { return s.run(ctx) })
	}
	return s.run(ctx)
}

const waitingConnection = "waiting for a connection"

// serve adds a socket to the loop, with the buffers that its type needs.
func (s *server) serve(socket *addr.Socket) error {
	t := socket.Addr.Type
	if !t.Messages() && s.streams == nil {
		s.streams = sock.NewReceiver(s.config.Chunk)
		s.streams.TakeRights()
	}
	if t.Messages() && s.receiver == nil {
		s.receiver = sock.NewReceiver(sock.MaxMessage())
		s.receiver.TakeRights()
	}
	if t.Connects() {
		ln := &listener{server: s, socket: socket, noRights: sock.RefusesRights(socket.FD())}
		s.listeners = append(s.listeners, ln)
		return s.loop.Add(socket.FD(), ln, unix.EPOLLIN)
	}
	d, err := newDatagrams(s, socket)
	if err != nil {
		return err
	}
	s.datagrams = append(s.datagrams, d)
	return s.loop.Add(socket.FD(), d, unix.EPOLLIN)
}

// A server is the state of a running server. One goroutine owns all of it.
type server struct {
	config      Config
	loop        *loop.Loop
	listeners   []*listener
	datagrams   []*datagrams
	spare       [][]byte  // buffers for the unsent bytes of blocked connections
	parked      []*conn   // they wait for room, see room.go
	unparked    time.Time // when they tried last
	sockets     []*addr.Socket
	handover    *sock.Handover // nil: the sockets are not handed over, or have been
	followed    int            // the descriptor of the handover that the loop waits for; -1 if none
	emptyBy     time.Time      // when replies that wait have had their time, while a successor claims the sockets
	names       names
	ownThread   bool           // the loop has its own thread, whose working directory is not set yet
	open        int            // connections
	perUser     map[uint32]int // open connections of each user
	lastID      uint64
	streams     *sock.Receiver // one receiver, shared by all stream connections
	receiver    *sock.Receiver
	warn        [Causes]zerolog.Logger // each rate limited, as a client can cause them as often as it likes
	warnDropped zerolog.Logger         // rate limited too
	started     time.Time
	swept       time.Duration // time since the start at the last sweep
	acceptAgain time.Time     // when to accept again, while the system lacks descriptors
	ended       endings
	closers     *Closers
	closing     int // connections that are being closed beside the loop, and still count
	strays      int // descriptors that came with messages, and are being closed
	rejected    int // connections that are being closed and count for no limit
	drainUntil  time.Time
	failed      error // the error that ends the server
	displaced   error // another server has its path: it ends once its clients are served
}

func newServer(c Config, l *loop.Loop) *server {
	if c.Stats == nil {
		c.Stats = new(Stats)
	}
	s := &server{config: c, loop: l, handover: c.Handover, followed: -1, started: time.Now(), perUser: map[uint32]int{}}
	s.names = newNames(l)
	bounded := func() zerolog.Logger { return c.Log.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second}) }
	for cause := range s.warn {
		s.warn[cause] = bounded()
	}
	s.warnDropped = bounded()
	s.closers = NewClosers(c.Log)
	return s
}

func (s *server) run(ctx context.Context) error {
	for {
		if s.ownThread && !s.pending() { // taking over looks up paths
			s.ownThread = false
			s.names.dir = newWorkDir(s.config.OwnDirectory)
		}
		if err := s.loop.Wait(s.timeout()); err != nil {
			return err
		}
		if s.failed != nil {
			return s.failed
		}
		s.ended.each()
		s.collect()
		busy := 0
		if s.config.Relay != nil {
			s.config.Relay.Turn()
			busy = s.config.Relay.Busy()
		}
		now := time.Now()
		s.unpark(now)
		s.sweep(now.Sub(s.started))
		if (ctx.Err() != nil || s.displaced != nil) && s.drainUntil.IsZero() {
			if s.open == 0 {
				s.config.Log.Debug().Msg("draining")
			} else {
				s.config.Log.Info().Int("connections", s.open).Msgf("draining for up to %v: connections are open; another signal ends them at once", s.config.DrainTimeout)
			}
			s.drainUntil = now.Add(s.config.DrainTimeout)
			if err := s.drain(); err != nil {
				return err
			}
		}
		if !s.acceptAgain.IsZero() && now.After(s.acceptAgain) {
			s.acceptAgain = time.Time{}
			if s.drainUntil.IsZero() {
				s.watchListeners(unix.EPOLLIN)
			} else if err := s.drain(); err != nil {
				return err
			}
		}
		waiting := 0
		for _, d := range s.datagrams {
			d.sendWaiting(now)
			waiting += d.waiting
		}
		s.config.Stats.Waiting.Store(int64(waiting))
		s.handOver(now)
		if s.drainUntil.IsZero() {
			continue
		}
		if s.open-s.closing+waiting+busy+len(s.listeners) == 0 && !s.asked() {
			return s.displaced
		}
		if now.After(s.drainUntil) {
			s.config.Log.Warn().Int("connections", s.open).Int("replies", waiting).Dur("drain_timeout", s.config.DrainTimeout).
				Msg("drain timeout is over: closing all connections")
			return s.displaced
		}
	}
}

// timeout returns how long the loop may sleep, -1 for no limit.
func (s *server) timeout() time.Duration {
	var first time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if s.open > 0 || s.hasFiles() || s.strays+s.rejected > 0 {
		earlier(s.started.Add(s.swept + sweepPeriod))
	}
	if len(s.parked) > 0 {
		earlier(s.unparked.Add(roomPause))
	}
	earlier(s.drainUntil)
	earlier(s.acceptAgain)
	for _, d := range s.datagrams {
		earlier(d.tryAgain)
	}
	if s.handover != nil && s.handover.State() == sock.Yielding {
		earlier(s.emptyBy)
	}
	if first.IsZero() {
		return -1
	}
	return max(time.Until(first), 0)
}

// goHome must be called before anything that looks up a path on the loop's
// thread.
func (s *server) goHome() { s.names.dir.goHome() }

// sweepPeriod is the time between two sweeps.
const sweepPeriod = time.Second

// sweep disconnects clients that have sent or read nothing for too long, and
// recreates socket files that were removed.
//
// The time of a client begins with the first sweep after its last activity. So
// it is never too short, and costs nothing in between. If the process itself
// was stopped, the time begins again: the server has not seen what clients did
// meanwhile.
func (s *server) sweep(now time.Duration) {
	if now-s.swept < sweepPeriod {
		return
	}
	stopped := now-s.swept > 3*sweepPeriod
	s.swept = now
	s.names.forgetAll() // look them up again
	s.closers.Sweep()
	if s.config.Relay != nil {
		s.config.Relay.Sweep(now, stopped)
	}
	if s.config.FilesSweep != nil {
		s.config.FilesSweep(now, stopped)
	}
	for h := range s.loop.Handlers {
		c, ok := h.(*conn)
		if !ok {
			continue
		}
		if c.hasRead() || c.still == 0 || stopped {
			c.still = now
			continue
		}
		switch still := now - c.still; {
		case c.blocked && s.config.WriteTimeout > 0 && still >= s.config.WriteTimeout:
			c.turnAway(CauseUnread, "it has not read for %v", s.config.WriteTimeout)
		case !c.blocked && s.config.IdleTimeout > 0 && still >= s.config.IdleTimeout:
			c.turnAway(CauseIdle, "it has sent nothing for %v", s.config.IdleTimeout)
		}
	}
	if s.drainUntil.IsZero() {
		s.renew()
	}
}

// pending reports whether the sockets still belong to another server.
func (s *server) pending() bool { return s.handover != nil && s.handover.Pending() }

// drain rejects new clients. The files are removed first, so that a new client
// finds no socket instead of a closed one; clients that had connected by then
// are served. If another server has just asked for the sockets, they are left
// to it, or drained when it has ended. Sockets that do not belong to this
// server yet are given back.
func (s *server) drain() error {
	s.goHome()
	if s.pending() {
		if s.handover.Orphaned() {
			s.step()
		}
		if s.failed != nil {
			return s.failed
		}
		if s.pending() {
			s.unfollow()
			s.handover.Close()
			return nil
		}
	}
	if s.asked() {
		return nil
	}
	if s.handover != nil {
		s.unfollow()
		s.handover.Leave()
	}
	var kept []*listener
	for _, ln := range s.listeners {
		ln.socket.Unlink()
		if !ln.socket.Shared() { // otherwise the other servers accept the waiting clients
			ln.acceptAll()
			if err := ln.socket.Refuse(); err != nil {
				return err
			}
			if !ln.acceptAll() {
				kept = append(kept, ln) // and drained again when acceptAgain comes
				continue
			}
		}
		s.loop.Remove(ln.socket.FD())
		if err := ln.socket.Close(); err != nil {
			return err
		}
	}
	s.listeners = kept
	for _, d := range s.datagrams {
		d.socket.Unlink()
		if d.socket.Shared() {
			d.stop()
			continue
		}
		if err := d.socket.Refuse(); err != nil {
			return err
		}
		d.drain()
	}
	if s.handover != nil {
		s.handover.Close()
	}
	return nil
}

func (s *server) close() {
	if s.config.Relay != nil {
		s.config.Relay.End()
	}
	if s.handover != nil {
		s.unfollow()
		s.handover.Leave()
	}
	for _, d := range s.datagrams {
		d.close()
	}
	for h := range s.loop.Handlers {
		if c, ok := h.(*conn); ok {
			s.reject(c.fd, c.noRights, nil)
		}
	}
	s.names.forgetAll()
	s.names.close()
	s.names.dir.close()
	s.ended.close()
	s.loop.Close()
	if !s.drainUntil.IsZero() {
		s.turnAwayAll()
	}
	for _, ln := range s.listeners {
		_ = ln.socket.Close()
	}
	if s.handover != nil {
		s.handover.Close()
	}
}

// allowed reports whether Allow admits a client. A client without credentials
// is denied.
func (s *server) allowed(cred *unix.Ucred) bool {
	return s.config.Allow == nil || cred != nil && s.config.Allow(*cred)
}

func (s *server) watchListeners(events uint32) {
	for _, ln := range s.listeners {
		s.loop.Watch(ln.socket.FD(), events)
	}
	if s.followed >= 0 && s.handover.State() == sock.Serving {
		s.loop.Watch(s.followed, events)
	}
}

// about returns an event about a client, or nil if its level is off: a health
// check is not logged at info level.
func (s *server) about(quiet bool) *zerolog.Event {
	level := zerolog.InfoLevel
	if quiet {
		level = zerolog.DebugLevel
	}
	if s.config.Log.GetLevel() > level {
		return nil
	}
	return s.config.Log.WithLevel(level)
}
