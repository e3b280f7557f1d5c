// Package fileserver is the server's side of passing files, see package
package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Handler reads the files that clients send.
type Handler struct {
	config Config
	warn   zerolog.Logger // for events that a client can cause as often as it likes

	// A part of a file is read in a turn. So neither a huge file nor many files
	// make other users wait, or use more memory, or more threads if a read
	// hangs. Health checks have turns of their own.
	turns, checks *turns
	buffers       sync.Pool
	// Receiving has turns too, as one message may bring many descriptors.
	receives *turns
	closers  *server.Closers
	stopped  context.Context
	stop     func()

	mu      sync.Mutex
	conns   map[*conn]bool
	lastID  uint64
	serving sync.WaitGroup
}

// A Config configures a [Handler].
type Config struct {
	// As in package echoserver: clients that request nothing for this long, or
	// do not read an answer, are disconnected; 0: no limit.
	IdleTimeout, WriteTimeout time.Duration
	Stats                     *server.Stats // counts rejected and disconnected clients
	Log                       zerolog.Logger
}

// New returns a server that waits for connections, see [Handler.Serve].
func New(c Config) *Handler {
	s := &Handler{config: c, conns: map[*conn]bool{}}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.warn = c.Log.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second})
	// Leave one processor to the echo.
	turns := max(runtime.GOMAXPROCS(0)-1, 1)
	s.turns, s.checks, s.receives = newTurns(turns, mayHang, turns), newTurns(1, 0, 1), newTurns(mayHang, 0, 1)
	s.buffers.New = func() any { return new([bufferSize]byte) }
	s.closers = server.NewClosers(c.Log)
	return s
}

// Serve serves a connection in the background, and takes it over. It calls
// done when it has closed the connection. A quiet connection is not logged at
// info level.
func (s *Handler) Serve(fd int, quiet bool, done func()) {
	c := &conn{server: s, quiet: quiet}
	f := os.NewFile(uintptr(fd), "")
	err := c.open(f)
	if err != nil {
		s.warn.Warn().Err(err).Msgf("cannot serve a client: %v", err)
		s.closers.Close(-1, func() {
			_ = f.Close()
			done()
		})
		return
	}
	_ = f.Close() // c has a duplicate
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	c.id = s.lastID
	s.conns[c] = true
	s.serving.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.closers.Close(c.user, func() {
			_ = c.conn.Close() // which closes the descriptors that still lie in it
			done()
		})
	})
}

// Sweep disconnects clients that have requested nothing, or read nothing, for
// too long. Call it about once a second; now is a time that grows. As in
// package echoserver, a client's time begins with the first sweep after its
// last activity, and again if the process itself was stopped.
func (s *Handler) Sweep(now time.Duration, stopped bool) {
	s.closers.Sweep()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sweep(now, stopped)
	}
}

// open sets up the connection on a duplicate of f, and reads the peer's
// credentials.
func (c *conn) open(f *os.File) (err error) {
	fd := int(f.Fd())
	c.peer = sock.PeerName(fd)
	if c.cred, err = sock.PeerCred(fd); err != nil {
		return err
	}
	c.user = int64(c.cred.Uid)
	if c.quiet {
		c.user = healthCheck
	}
	if err := sock.PassCred(fd); err != nil {
		return err
	}
	u, err := net.FileConn(f)
	if err != nil {
		return err
	}
	c.conn = u.(*net.UnixConn)
	c.raw, err = c.conn.SyscallConn()
	return err
}

// stopPatience is how long Stop waits for readers.
const stopPatience = 500 * time.Millisecond

// Stop closes the open connections. If reading or closing hangs because the
// file's own file system does, Stop leaves that to the end of the process.
// Serve must not be called any more.
func (s *Handler) Stop() {
	s.stop()
	s.mu.Lock()
	for c := range s.conns {
		c.interrupt()
	}
	s.mu.Unlock()
	served := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(served)
	}()
	select {
	case <-served:
	case <-time.After(stopPatience):
	}
}

// A conn is one client.
type conn struct {
	server *Handler
	conn   *net.UnixConn
	raw    syscall.RawConn
	cred   *unix.Ucred
	peer   string
	id     uint64
	quiet  bool          // it checks the server's health, and is not logged at info level
	user   int64         // whose turns it takes: its uid, or healthCheck
	closed chan struct{} // the last request's file is closed; nil: there was none

	mu    sync.Mutex
	waits wait
	still time.Duration // the first sweep since it waits; 0: not yet
}

// healthCheck is the user that health checks count as.
const healthCheck = -2

// A wait is what a connection waits for its client to do.
type wait int

const (
	nothing wait = iota
	request
	reading
)

// waitFor starts or ends a wait.
func (c *conn) waitFor(w wait) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits, c.still = w, 0
	if c.server.stopped.Err() == nil {
		_ = c.conn.SetDeadline(time.Time{})
	}
}

// interrupt ends a wait, and the wait that comes next if the server has been
// stopped.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.SetDeadline(past)
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

func (c *conn) sweep(now time.Duration, stopped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := [...]time.Duration{request: c.server.config.IdleTimeout, reading: c.server.config.WriteTimeout}[c.waits]
	switch {
	case c.still == 0 || stopped:
		c.still = now
	case limit > 0 && now-c.still >= limit:
		_ = c.conn.SetDeadline(past)
	}
}

func (c *conn) serve() {
	logtext.WithCred(c.event(), c.cred).Msg("connection from")
	buf := make([]byte, MaxRecord)
	for {
		c.waitFor(request)
		record, fds, err := c.receive(buf)
		c.waitFor(nothing)
		switch {
		case c.server.stopped.Err() != nil:
			c.discard(fds...)
			return
		case err == io.EOF:
			c.event().Msg("no data from")
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.turnAway(server.CauseIdle, fmt.Errorf("it has requested nothing for %v", c.server.config.IdleTimeout))
			return
		case errors.Is(err, sock.ErrDescriptors):
			c.turnAway(server.CauseDescriptors, fmt.Errorf("more than one descriptor was received, and all are closed; send one at a time"))
			return
		case errors.Is(err, sock.ErrOpenFiles):
			c.turnAway(server.CauseSystem, fmt.Errorf("the server has reached its limit of open files; try again later"))
			return
		case errors.Is(err, sock.ErrTruncated):
			c.turnAway(server.CauseTruncated, fmt.Errorf("the request has more than %d bytes; write %q", MaxRecord, Request))
			return
		case err != nil:
			c.lost(err)
			return
		}
		answer, err := c.answer(record, fds)
		var broken *protocolError
		switch {
		case errors.As(err, &broken):
			c.turnAway(server.CauseRequest, err)
			return
		case errors.Is(err, errLeft), errors.Is(err, context.Canceled):
			c.lost(err)
			return
		case err != nil:
			c.refuse(server.CauseRequest, err).Msgf("cannot read the received file: %v", err)
			answer = "error " + err.Error()
		}
		c.event().Int("bytes", len(answer)).Msg("sending " + logtext.Quote([]byte(answer)))
		c.waitFor(reading)
		switch _, err := c.conn.Write([]byte(answer)); {
		case err == nil:
		case c.server.stopped.Err() != nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.turnAway(server.CauseUnread, fmt.Errorf("it has not read for %v", c.server.config.WriteTimeout))
			return
		default:
			c.lost(err)
			return
		}
	}
}

// receive receives a request, once the file of the last one is closed. It has
// room for all descriptors that may come along: the kernel would close others
// at once, which may hang. A user whose unexpected descriptors are still being
// closed waits.
func (c *conn) receive(buf []byte) (record []byte, fds []int, err error) {
	if c.closed != nil {
		select {
		case <-c.closed:
		case <-c.server.stopped.Done():
			return nil, nil, c.server.stopped.Err()
		}
	}
	var n int
	receives := c.own(c.server.receives)
	waitErr := c.raw.Read(func(fd uintptr) bool {
		if err = receives.begin(c.server.stopped, c.user); err != nil {
			return true
		}
		n, fds, _, err = sock.ReceiveFiles(int(fd), buf, sock.MaxRights)
		if len(fds) > 1 {
			strays := fds
			n, fds, err = 0, nil, sock.ErrDescriptors
			c.server.closers.Close(c.user, func() {
				sock.CloseFiles(strays...)
				receives.end(c.user)
			})
			return true
		}
		receives.end(c.user)
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		err = waitErr
	}
	return buf[:n], fds, err
}

// discard closes the file of a request, without waiting for it.
func (c *conn) discard(fds ...int) {
	closed := make(chan struct{})
	c.closed = closed
	c.server.closers.Close(c.user, func() {
		sock.CloseFiles(fds...)
		close(closed)
	})
}

// A protocolError means that a client has broken this protocol.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return e.text }

// answer reads the received file, and closes it.
func (c *conn) answer(record []byte, fds []int) (answer string, err error) {
	c.event().Int("bytes", len(record)).Int("descriptors", len(fds)).Msg("received " + logtext.Quote(record))
	if len(fds) == 0 {
		return "", &protocolError{fmt.Sprintf("no descriptor came with the request; send %q with one", Request)}
	}
	fd := fds[0]
	if string(record) != Request {
		c.discard(fd)
		return "", &protocolError{fmt.Sprintf("unknown request %s: write %q", logtext.Quote(record), Request)}
	}
	defer c.discard(fd)
	var in *input
	err = c.turn(func([]byte) (err error) {
		in, err = inspect(fd)
		return err
	})
	if err != nil {
		return "", err
	}
	defer in.close()
	started := time.Now()
	sum, err := in.sum(c.turn)
	if err == nil {
		c.event().Int64("size", in.size).Int64("mapped", in.mapped).Dur("duration", time.Since(started)).Msg("read all of it")
	}
	return sum.String(), err
}

var errLeft = errors.New("the client left before the answer")

// turn does one part of the work, when it is this client's turn, unless the
// client or the server has ended.
func (c *conn) turn(work func(buf []byte) error) error {
	turns := c.own(c.server.turns)
	if err := turns.begin(c.server.stopped, c.user); err != nil {
		return err
	}
	defer turns.end(c.user)
	defer turns.watch()()
	if c.left() {
		return errLeft
	}
	buf := c.server.buffers.Get().(*[bufferSize]byte)
	defer c.server.buffers.Put(buf)
	return work(buf[:])
}

// own returns the turns that this client takes: t, or those of health checks.
func (c *conn) own(t *turns) *turns {
	if c.quiet {
		return c.server.checks
	}
	return t
}

// mayHang is how many further files may hang the goroutines that read them,
// without stopping others: files of a file system that does not answer.
const mayHang = 4

// turnPatience is how long a turn may take before a spare turn is added.
const turnPatience = time.Second

// left reports whether the client has closed its end.
func (c *conn) left() (left bool) {
	err := c.raw.Control(func(fd uintptr) { left = sock.HungUp(int(fd)) })
	return left || err != nil
}

// refuse counts a request that is not served, and returns the event that logs
// it.
func (c *conn) refuse(why server.Cause, err error) *zerolog.Event {
	ev := c.server.warn.Warn().Stringer("cause", why).Uint64("refused", c.server.config.Stats.Refuse(why, 1))
	return logtext.WithCred(ev.Uint64("conn", c.id).Str("peer", logtext.Escape(c.peer)).Err(err), c.cred)
}

// turnAway tells the client, and logs, why it is rejected. The caller closes
// the connection.
func (c *conn) turnAway(why server.Cause, err error) {
	c.refuse(why, err).Msgf("disconnected a client: %v", err)
	// The client misses the text if it does not accept it now.
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.Sendto(int(fd), []byte("error "+err.Error()), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	})
}

func (c *conn) lost(err error) {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) {
		return // the drain timeout, which is logged already
	}
	c.event().Err(err).Msgf("lost the connection: %v", err)
}

// event returns an event about this client.
func (c *conn) event() *zerolog.Event {
	level := zerolog.InfoLevel
	if c.quiet {
		level = zerolog.DebugLevel
	}
	return c.server.config.Log.WithLevel(level).Uint64("conn", c.id).Str("peer", logtext.Escape(c.peer))
}
