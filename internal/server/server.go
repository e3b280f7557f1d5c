// Package server accepts the clients of sockets of all types on one event loop,
// limits them, drains at the end, makes removed sockets again, and hands its
// sockets over to a successor. A [Handler] decides what happens to a client.
//
// The texts of the events are a contract, the transcript: a program that reads
// them finds the same words in every format and every version.
package server

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Config configures a server for any number of clients at once.
type Config struct {
	Spin         time.Duration // how long to poll before sleeping, see package loop; 0: not at all
	Memory       *Pool         // what all clients together may make the server hold; nil: no bounds
	DrainTimeout time.Duration // how long clients may continue once the server is told to stop

	// Further clients are rejected, except [HealthChecks]; 0: no limit. TCP
	// connections have no user, so only the first limit applies to them.
	MaxConnections, MaxConnectionsPerUser int
	// Allow reports whether a client may be served, by the credentials that
	// the kernel reports. TCP sockets have none. nil: all clients may.
	Allow func(unix.Ucred) bool
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

// A phase is what a server does with its sockets. Up to yielded, the names are
// those of [sock.State] and of takeover.pml.
type phase int

const (
	claiming phase = iota // they belong to another server
	serving
	yielding // a successor claims them: no datagram is received, and the last replies are sent
	yielded  // the successor may serve them, and has not said so yet
	draining // no client comes any more, and those that are there are served to their end
)

// A Server is the state of a running server. One goroutine owns all of it, that
// of the loop.
type Server struct {
	Config
	Loop *loop.Loop

	closers   *Closers
	phase     phase
	stopBy    time.Time // when the clients of a server that was told to stop have had their time; zero: it was not told
	failed    error     // the error that ends the server
	displaced error     // another server has its path: it stops

	services        []Service
	handlers        []Handler
	listeners       []*listener
	datagrams       []*datagrams
	datagramSockets int            // that share the room for replies
	receiver        *sock.Receiver // one receiver, shared by all datagram sockets
	followed        int            // the descriptor of the handover that the loop waits for; -1 if none
	yieldBy         time.Time      // when replies that wait have had their time, while yielding
	names           names
	ownThread       bool // the loop has its own thread, whose working directory is not set yet

	open        int            // connections
	perUser     map[uint32]int // open connections of each user
	lastID      uint64
	closing     int                    // connections that are being closed beside the loop, and still count
	strays      int                    // descriptors that came with messages, and are being closed
	rejected    int                    // connections that are being closed and count for no limit
	warn        [Causes]zerolog.Logger // each rate limited, as a client can cause them as often as it likes
	warnDropped zerolog.Logger         // rate limited too
	started     time.Time
	swept       time.Duration // time since the start at the last sweep
	acceptAgain time.Time     // when to accept again, while the system lacks descriptors
}

// New makes a server. [Server.Serve] or [Server.ServeConn] ends it.
func New(c Config) (*Server, error) {
	l, err := loop.New(c.Spin)
	if err != nil {
		return nil, err
	}
	if c.Stats == nil {
		c.Stats = new(Stats)
	}
	s := &Server{Config: c, Loop: l, closers: NewClosers(c.Log), phase: serving, followed: -1, started: time.Now(), perUser: map[uint32]int{}}
	s.names = newNames(s)
	for cause := range s.warn {
		s.warn[cause] = Bounded(c.Log)
	}
	s.warnDropped = Bounded(c.Log)
	return s, nil
}

// Bounded returns a log for events that a client can cause as often as it likes.
func Bounded(log zerolog.Logger) zerolog.Logger {
	return log.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second})
}

// Serve serves sockets, and takes them over, until ctx ends. Then it removes
// the socket files, accepts the connections that were made before, lets every
// client continue to its end or to the drain timeout, and returns nil.
func (s *Server) Serve(ctx context.Context, services ...Service) error {
	s.services = slices.Clone(services)
	defer s.close()
	waiting := "waiting for a message"
	if s.Handover != nil && s.Handover.Pending() {
		s.phase = claiming
	}
	for _, of := range services {
		if !slices.Contains(s.handlers, of.Handler) {
			s.handlers = append(s.handlers, of.Handler)
		}
		if of.Addr.Type.Connects() {
			waiting = waitingConnection
		} else {
			s.datagramSockets++
		}
	}
	for i, of := range services {
		s.Log.Info().Str("listen", logtext.Escape(of.Addr.String())).Msg("starting up on " + logtext.Escape(of.Addr.Path))
		if s.phase == claiming {
			continue
		}
		if err := s.serve(of); err != nil {
			for _, unserved := range services[i:] {
				_ = unserved.Close()
			}
			return err
		}
	}
	s.Log.Info().Msg(waiting)
	if s.phase == claiming {
		if ctx.Err() != nil {
			return nil // the server that serves them may continue
		}
		s.Handover.Claim()
	}
	if err := s.follow(); err != nil {
		return err
	}

	defer s.Loop.InterruptAt(ctx)()
	if s.ownThread = s.datagramSockets > 0; s.ownThread {
		return onOwnThread(func() error { return s.run(ctx) })
	}
	return s.run(ctx)
}

const waitingConnection = "waiting for a connection"

// serve adds a socket to the loop.
func (s *Server) serve(of Service) error {
	if of.Addr.Type.Connects() {
		ln := &listener{server: s, socket: of.Socket, handler: of.Handler, noRights: sock.RefusesRights(of.FD())}
		s.listeners = append(s.listeners, ln)
		return s.Loop.Add(of.FD(), ln, unix.EPOLLIN)
	}
	if s.receiver == nil {
		s.receiver = sock.NewReceiver(sock.MaxMessage())
		s.receiver.TakeRights()
	}
	d, err := newDatagrams(s, of)
	if err != nil {
		return err
	}
	s.datagrams = append(s.datagrams, d)
	return s.Loop.Add(of.FD(), d, unix.EPOLLIN)
}

func (s *Server) run(ctx context.Context) error {
	for {
		if s.ownThread && s.phase != claiming { // taking over looks up paths
			s.ownThread = false
			s.names.dir = newWorkDir(s.OwnDirectory)
		}
		if err := s.Loop.Wait(s.timeout()); err != nil {
			return err
		}
		if s.failed != nil {
			return s.failed
		}
		now := time.Now()
		s.sweep(now.Sub(s.started))
		if (ctx.Err() != nil || s.displaced != nil) && !s.stopping() {
			s.stop(now)
		}
		if !s.acceptAgain.IsZero() && now.After(s.acceptAgain) {
			s.acceptAgain = time.Time{}
			s.watchListeners(unix.EPOLLIN)
			s.drainListeners()
		}
		waiting := 0
		for _, d := range s.datagrams {
			d.sendWaiting(now)
			waiting += d.waiting
		}
		s.Stats.Waiting.Store(int64(waiting))
		s.yield(now)
		switch {
		case s.failed != nil:
			return s.failed
		case !s.stopping():
		case !s.asked() && s.served(waiting):
			return s.displaced
		case now.After(s.stopBy):
			s.Log.Warn().Int("connections", s.open).Int("replies", waiting).Dur("drain_timeout", s.DrainTimeout).
				Msg("drain timeout is over: closing all connections")
			return s.displaced
		}
	}
}

// served reports whether no client needs this server any more.
func (s *Server) served(waiting int) bool {
	n := s.open - s.closing + waiting + len(s.listeners)
	for _, h := range s.handlers {
		n += h.Busy()
	}
	return n == 0
}

// timeout returns how long the loop may sleep, -1 for no limit.
func (s *Server) timeout() time.Duration {
	var first time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if s.open > 0 || s.hasFiles() || s.strays+s.rejected > 0 {
		earlier(s.started.Add(s.swept + sweepPeriod))
	}
	earlier(s.stopBy)
	earlier(s.acceptAgain)
	for _, d := range s.datagrams {
		if d.waiting > 0 {
			earlier(d.tryAgain)
		}
	}
	if s.phase == yielding {
		earlier(s.yieldBy)
	}
	if first.IsZero() {
		return -1
	}
	return max(time.Until(first), 0)
}

// sweepPeriod is the time between two sweeps.
const sweepPeriod = time.Second

// sweep does what is due about once a second: handlers disconnect clients that
// have sent or read nothing for too long, and socket files that were removed
// are made again.
func (s *Server) sweep(now time.Duration) {
	if now-s.swept < sweepPeriod {
		return
	}
	stopped := now-s.swept > 3*sweepPeriod
	s.swept = now
	s.names.forgetAll() // look them up again
	s.closers.Sweep()
	for _, h := range s.handlers {
		h.Sweep(now, stopped)
	}
	if !s.stopping() {
		s.renew()
	}
}

// stopping reports whether the server was told to stop, or has handed its
// sockets over.
func (s *Server) stopping() bool { return !s.stopBy.IsZero() }

// stop begins the end: new clients are rejected, and those that are there have
// the drain timeout. If another server has just asked for the sockets, they are
// left to it, or drained when it has ended. Sockets that do not belong to this
// server yet are given back.
func (s *Server) stop(now time.Time) {
	if s.open == 0 {
		s.Log.Debug().Msg("draining")
	} else {
		s.Log.Info().Int("connections", s.open).Msgf("draining for up to %v: connections are open; another signal ends them at once", s.DrainTimeout)
	}
	s.stopBy = now.Add(s.DrainTimeout)
	if s.phase == claiming && s.Handover.Orphaned() {
		s.step() // they are this server's own now
	}
	if s.failed == nil && s.phase != draining && !s.asked() {
		s.enter(draining)
	}
}

// enter enters another phase. The order of the phases is that of their
// declaration; a successor that ends brings the server back to serving.
func (s *Server) enter(p phase) {
	from := s.phase
	s.phase = p
	switch {
	case p == serving && from == claiming:
		s.takeOver()
	case p == serving:
		s.takeBack(from)
	case p == yielding:
		s.stopReceiving()
	case p == yielded:
		for _, ln := range s.listeners {
			s.Loop.Remove(ln.socket.FD())
		}
		s.Handover.Yield()
	case p == draining && from == claiming:
		s.unfollow()
		s.Handover.Close()
	case p == draining && from == yielded:
		s.handedOver()
	case p == draining:
		s.drain()
	}
}

// drain rejects new clients. The files are removed first, so that a new client
// finds no socket instead of a closed one; clients that had connected by then
// are served.
func (s *Server) drain() {
	s.atHome(func() {
		if s.Handover != nil {
			s.unfollow()
			s.Handover.Leave()
		}
		for _, of := range s.services {
			of.Unlink()
		}
	})
	s.drainListeners()
	for _, d := range s.datagrams {
		if d.socket.Shared() { // the other servers receive what is waiting
			d.stop()
			continue
		}
		if s.fail(d.socket.Refuse()) {
			return
		}
		d.drain()
	}
	if s.Handover != nil {
		s.Handover.Close()
	}
}

// drainListeners accepts the last clients and closes the listeners. Those whose
// clients could not all be accepted stay, until acceptAgain.
func (s *Server) drainListeners() {
	if s.phase != draining {
		return
	}
	var kept []*listener
	for _, ln := range s.listeners {
		if !ln.socket.Shared() { // otherwise the other servers accept the waiting clients
			ln.acceptAll()
			if s.fail(ln.socket.Refuse()) {
				return
			}
			if !ln.acceptAll() {
				kept = append(kept, ln)
				continue
			}
		}
		s.Loop.Remove(ln.socket.FD())
		s.fail(ln.socket.Close())
	}
	s.listeners = kept
}

// fail notes an error that ends the server, and reports whether there is one, the
// first of which counts.
func (s *Server) fail(err error) bool {
	if s.failed == nil {
		s.failed = err
	}
	return s.failed != nil
}

// close ends everything, in this order: the clients, while the sockets that
// answer them are there; the sockets; the loop; the clients that could not be
// accepted, for whom descriptors are free now; at last the locks.
func (s *Server) close() {
	for _, h := range s.handlers {
		h.Close()
	}
	if s.Handover != nil {
		s.unfollow()
		s.Handover.Leave()
	}
	for _, d := range s.datagrams {
		d.close()
	}
	s.Loop.Close()
	s.names.close()
	if s.stopping() {
		s.turnAwayAll()
	}
	for _, ln := range s.listeners {
		_ = ln.socket.Close()
	}
	if s.Handover != nil {
		s.Handover.Close()
	}
}
