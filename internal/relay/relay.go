// Package relay forwards what the clients of a server send to one target, and
// returns what the target sends: bytes, whole messages, and descriptors. The
// server listens, accepts, limits and drains. The relay uses its loop, and
// everything except dialling runs on the loop's goroutine.
//
// The contract:
//
//   - no byte is lost, altered or reordered;
//   - the end of one direction is passed on and leaves the other direction open
//     (shutdown(2), SHUT_WR);
//   - if one end does not read, the relay stops reading the other end, so a
//     connection uses at most one buffer for each direction;
//   - no connection stops another.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/relay/record"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Config configures where and how to forward.
type Config struct {
	Target addr.Addr
	Name   string // of the target in the record; "" for its path
	// Dial connects to the target, however long that takes, and checks the
	// user that serves there. Without PassFiles its sockets refuse descriptors.
	// It is called from many goroutines.
	Dial func(context.Context) (*sock.Conn, error)
	// Check is the check alone, for a Unix target to which the relay could
	// connect at once.
	Check func(unix.Ucred) error
	// Process is the id of this process. A client that it is itself is rejected:
	// the target leads back here. 0: no check.
	Process int
	// AsClient connects with the client's user and groups, so that the target
	// sees those. It needs root; both sides are Unix sockets that connect.
	AsClient bool
	// PassFiles passes descriptors on; otherwise they end their connection.
	PassFiles   bool
	IdleTimeout time.Duration // connections on which nothing passes for this long are closed; 0: none
	// Limits for datagram clients at the same time, in all and for one user. A
	// further client takes the place of the one that has been silent for
	// longest. 0: no limit.
	MaxPeers, MaxPeersPerUser int
	Record                    *record.Recorder
}

// A Relay is the state of a running relay, see [server.Handler].
type Relay struct {
	config Config
	srv    *server.Server
	ctx    context.Context
	cancel context.CancelFunc
	warn   zerolog.Logger // rate limited, as a client can cause warnings as often as it likes

	links      map[*link]struct{}
	peers      map[server.SenderKey]*peer
	lastID     uint64       // of the last peer
	passed     uint64       // messages of all peers
	parked     []*direction // see room.go
	buf        []byte       // for the next receive
	free       sync.Pool    // of *[bufSize]byte, to take its place if a direction keeps it
	pipes      []*pipe      // empty
	madePipes  int
	files      usage   // descriptors that were received, and are not closed yet
	flying     usage   // descriptors that were sent, and may not be received yet
	mostFlying int     // of one user
	noRights   bool    // no descriptors come from the target, see [sock.RefusesRights]
	placer     *placer // nil without PassFiles
	replies    *sock.Receiver

	dials  sync.WaitGroup
	first  chan struct{} // held by the first in the queue of a full backlog, see [Relay.queue]
	queued atomic.Int32  // dials in that queue
}

// The size of one receive, and the share of one direction before the others get
// their turn.
const (
	bufSize = 64 << 10
	maxTurn = 4
)

// New makes a relay for the clients of srv, whose memory all connections share,
// each with two ends. It fails if there is no memory.
func New(srv *server.Server, c Config) (*Relay, error) {
	r := &Relay{config: c, srv: srv, first: make(chan struct{}, 1), links: map[*link]struct{}{}, peers: map[server.SenderKey]*peer{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.warn = server.Bounded(srv.Log)
	size := bufSize
	if c.Target.Type.Messages() {
		size = sock.MaxMessage()
		r.replies = sock.NewReceiver(size)
		r.replies.TakeRights() // so that no close of theirs is on the loop
	}
	r.buf = make([]byte, size)
	r.noRights = !c.PassFiles && sock.CanRefuseRights()
	r.files, r.flying = newUsage(), newUsage()
	r.free.New = func() any { return new([bufSize]byte) }
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	r.mostFlying = max(int(min(limit.Cur, math.MaxInt32))/4, sock.MaxRights)
	var err error
	if c.PassFiles {
		r.placer, err = newPlacer()
	}
	return r, err
}

// connect connects to the target if that takes no time: to a Unix socket that
// is served and has room in its backlog. On any failure, [Relay.dial] finds
// the reason.
func (r *Relay) connect() (fd int, ok bool) {
	if !r.config.Target.Type.Unix() || r.queued.Load() > 0 {
		return -1, false
	}
	fd, err := sock.DialConfig{Control: func(fd int) error {
		sock.InlineUrgent(fd)
		if !r.config.PassFiles {
			sock.RefuseRights(fd)
		}
		return nil
	}}.Connect(r.config.Target.Sock())
	if err != nil {
		return -1, false
	}
	cred, err := sock.PeerCred(fd)
	if err != nil || r.config.Check(*cred) != nil {
		_ = unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// dial connects to the target, unless ctx ends before, and makes the loop's
// goroutine call then. Unless who is nil, it connects as that.
func (r *Relay) dial(ctx context.Context, who *identity, then func(*sock.Conn, error)) {
	dial := func() (*sock.Conn, error) { return r.config.Dial(ctx) }
	if who != nil {
		dial = func() (conn *sock.Conn, err error) {
			if failed := who.do(func() { conn, err = r.config.Dial(ctx) }); failed != nil {
				err = failed
			}
			return conn, err
		}
	}
	r.dials.Go(func() {
		conn, err := dial()
		if errors.Is(err, unix.EAGAIN) {
			r.queued.Add(1)
			conn, err = r.queue(ctx, dial)
			r.queued.Add(-1)
		}
		r.srv.Loop.Post(func() { then(conn, err) })
	})
}

// queue connects to a target whose backlog is full, as soon as there is room. A
// client without a relay would wait in connect(2); a connect that does not block
// fails with EAGAIN, unix(7). The dials wait in the order in which they came,
// and only the first one tries.
func (r *Relay) queue(ctx context.Context, dial func() (*sock.Conn, error)) (*sock.Conn, error) {
	const pause = 5 * time.Millisecond
	select {
	case r.first <- struct{}{}:
		defer func() { <-r.first }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r.warn.Warn().Msg("the target's backlog is full: its clients wait until it accepts")
	for {
		conn, err := dial()
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		time.Sleep(pause) // Dial notices the end of ctx
	}
}

// Sweep closes connections that have been idle for too long. now is the time
// since the server started. Sweep is called about once a second. The time of a
// connection begins with the first sweep after bytes passed, or after the
// process was stopped.
func (r *Relay) Sweep(now time.Duration, stopped bool) {
	idle := func(still *time.Duration) bool {
		if r.config.IdleTimeout == 0 {
			return false
		}
		if *still == 0 || stopped {
			*still = now
		}
		return now-*still >= r.config.IdleTimeout
	}
	for l := range r.links {
		if l.target.fd < 0 {
			continue
		}
		if l.sweep(); !l.closed && idle(&l.still) {
			l.cut(fmt.Sprintf("nothing has passed for %v", r.config.IdleTimeout))
		}
	}
	for _, p := range r.peers {
		if p.rest == nil && idle(&p.still) {
			p.close()
		}
	}
}

// Busy returns how many datagram clients wait for the target.
func (r *Relay) Busy() (n int) {
	for _, p := range r.peers {
		if p.owed > 0 || p.rest != nil {
			n++
		}
	}
	return n
}

// Close closes everything. It waits for the dials, which end at once.
func (r *Relay) Close() {
	r.cancel()
	r.dials.Wait()
	r.srv.Loop.CallPosted()
	lost := 0
	for l := range r.links {
		lost += l.unsent()
		l.close()
	}
	if lost > 0 {
		r.srv.Log.Warn().Int("lost", lost).Msgf("%d bytes were received and not delivered, because their readers do not read", lost)
	}
	for _, p := range r.peers {
		p.close()
	}
	for _, p := range r.pipes {
		p.close()
	}
	if n := r.config.Record.Close(); n > 0 {
		r.srv.Log.Warn().Uint64("lost", n).Msgf("the record lacks %d pieces that passed", n)
	}
}

// record records a connection, if anything is recorded.
func (r *Relay) record(id uint64, peer string, cred *unix.Ucred) *record.Conn {
	return r.config.Record.Open(record.Conn{ID: id, Peer: peer, Cred: cred, Target: cmp.Or(r.config.Name, r.config.Target.Path)})
}

func escape(err error) string { return logtext.Escape(err.Error()) }

// unwanted reports whether err is about what a peer sent, not about the
// connection.
func unwanted(err error) bool {
	return errors.Is(err, sock.ErrDescriptors) || errors.Is(err, sock.ErrTruncated) || errors.Is(err, sock.ErrOpenFiles)
}
