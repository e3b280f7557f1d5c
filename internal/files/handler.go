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
	srv    *server.Server

	// A part of a file is read in a turn. So neither a huge file nor many files
	// make other users wait, or use more memory, or more threads if a read
	// hangs. Health checks have turns of their own.
	turns, checks *turns
	buffers       sync.Pool
	// Receiving has turns too, as one message may bring many descriptors. A user
	// has one at a time: if closing them hangs, the other users have theirs.
	receives *turns
	closers  *server.Closers
	stopped  context.Context
	stop     func()

	mu      sync.Mutex
	conns   map[*conn]bool
	serving sync.WaitGroup
}

// A Config configures a [Handler]: clients that request nothing for this long, or
// do not read an answer, are disconnected; 0: no limit.
type Config struct{ IdleTimeout, WriteTimeout time.Duration }

// New returns a handler for the clients of srv.
func New(srv *server.Server, c Config) *Handler {
	h := &Handler{config: c, srv: srv, conns: map[*conn]bool{}, closers: server.NewClosers(srv.Log)}
	h.stopped, h.stop = context.WithCancel(context.Background())
	// Leave one processor to the echo.
	turns := max(runtime.GOMAXPROCS(0)-1, 1)
	h.turns, h.checks, h.receives = newTurns(turns, turns), newTurns(1, 1), newTurns(maxReceives, 1)
	h.buffers.New = func() any { return new([bufferSize]byte) }
	return h
}

// Serve serves a connection in the background.
func (h *Handler) Serve(of server.Conn) {
	c := &conn{Conn: of, handler: h, user: of.UID}
	if c.HealthCheck() {
		c.user = healthCheck
	}
	f := os.NewFile(uintptr(of.FD()), "")
	if err := c.open(f); err != nil {
		c.TurnAway(server.CauseSystem, "%v", err)
		h.closers.Close(-1, func() {
			_ = f.Close()
			c.Done()
		})
		return
	}
	_ = f.Close() // c has a duplicate
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[c] = true
	h.serving.Go(func() {
		c.serve()
		h.mu.Lock()
		delete(h.conns, c)
		h.mu.Unlock()
		h.closers.Close(c.user, func() {
			_ = c.conn.Close() // which closes the descriptors that still lie in it
			c.Done()
		})
	})
}

// Receive has nothing to do: datagrams have no files: sockets.
func (h *Handler) Receive(server.Message) (more bool) { return true }

// Busy is for clients that have no connection.
func (h *Handler) Busy() int { return 0 }

// Sweep disconnects clients that have requested nothing, or read nothing, for
// too long. As with the echo, a client's time begins with the first sweep after
// its last activity, and again if the process itself was stopped.
func (h *Handler) Sweep(now time.Duration, stopped bool) {
	h.closers.Sweep()
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.sweep(now, stopped)
	}
}

// open sets up the connection on a duplicate of f.
func (c *conn) open(f *os.File) error {
	c.peer, c.cred = c.Peer(), c.Cred()
	if err := sock.PassCred(c.FD()); err != nil {
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

// stopPatience is how long Close waits for readers.
const stopPatience = 500 * time.Millisecond

// Close closes the open connections. If reading or closing hangs because the
// file's own file system does, Close leaves that to the end of the process.
func (h *Handler) Close() {
	h.stop()
	h.mu.Lock()
	for c := range h.conns {
		c.interrupt()
	}
	h.mu.Unlock()
	served := make(chan struct{})
	go func() {
		h.serving.Wait()
		close(served)
	}()
	select {
	case <-served:
	case <-time.After(stopPatience):
	}
}

// A conn is one client.
type conn struct {
	server.Conn
	handler *Handler
	conn    *net.UnixConn
	raw     syscall.RawConn
	peer    string
	cred    *unix.Ucred
	user    int64         // whose turns it takes: its uid, or healthCheck
	closed  chan struct{} // the last request's file is closed; nil: there was none

	mu    sync.Mutex
	waits wait
	still time.Duration // the first sweep since it waits; 0: not yet
}

// maxReceives is how many users may be received from at a time.
const maxReceives = 4

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
	if c.handler.stopped.Err() == nil {
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
	limit := [...]time.Duration{request: c.handler.config.IdleTimeout, reading: c.handler.config.WriteTimeout}[c.waits]
	switch {
	case c.still == 0 || stopped:
		c.still = now
	case limit > 0 && now-c.still >= limit:
		_ = c.conn.SetDeadline(past)
	}
}

func (c *conn) serve() {
	buf := make([]byte, MaxRecord)
	for {
		c.waitFor(request)
		record, fds, err := c.receive(buf)
		c.waitFor(nothing)
		switch {
		case c.handler.stopped.Err() != nil:
			c.discard(fds...)
			return
		case err == io.EOF:
			c.Event().Msg("no data from")
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.turnAway(server.CauseIdle, fmt.Errorf("it has requested nothing for %v", c.handler.config.IdleTimeout))
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
		c.Event().Int("bytes", len(answer)).Msg("sending " + logtext.Quote([]byte(answer)))
		c.waitFor(reading)
		switch _, err := c.conn.Write([]byte(answer)); {
		case err == nil:
		case c.handler.stopped.Err() != nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.turnAway(server.CauseUnread, fmt.Errorf("it has not read for %v", c.handler.config.WriteTimeout))
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
		case <-c.handler.stopped.Done():
			return nil, nil, c.handler.stopped.Err()
		}
	}
	var n int
	receives := c.own(c.handler.receives)
	waitErr := c.raw.Read(func(fd uintptr) bool {
		if err = receives.begin(c.handler.stopped, c.user); err != nil {
			return true
		}
		n, fds, _, err = sock.ReceiveFiles(int(fd), buf, sock.MaxRights)
		if len(fds) > 1 {
			strays := fds
			n, fds, err = 0, nil, sock.ErrDescriptors
			c.handler.closers.Close(c.user, func() {
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
	c.handler.closers.Close(c.user, func() {
		sock.CloseFiles(fds...)
		close(closed)
	})
}

// A protocolError means that a client has broken this protocol.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return e.text }

// answer reads the received file, and closes it.
func (c *conn) answer(record []byte, fds []int) (answer string, err error) {
	c.Event().Int("bytes", len(record)).Int("descriptors", len(fds)).Msg("received " + logtext.Quote(record))
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
		c.Event().Int64("size", in.size).Int64("mapped", in.mapped).Dur("duration", time.Since(started)).Msg("read all of it")
	}
	return sum.String(), err
}

var errLeft = errors.New("the client left before the answer")

// turn does one part of the work, when it is this client's turn, unless the
// client or the server has ended.
func (c *conn) turn(work func(buf []byte) error) error {
	turns := c.own(c.handler.turns)
	if err := turns.begin(c.handler.stopped, c.user); err != nil {
		return err
	}
	defer turns.end(c.user)
	if c.left() {
		return errLeft
	}
	buf := c.handler.buffers.Get().(*[bufferSize]byte)
	defer c.handler.buffers.Put(buf)
	return work(buf[:])
}

// own returns the turns that this client takes: t, or those of health checks.
func (c *conn) own(t *turns) *turns {
	if c.user == healthCheck {
		return c.handler.checks
	}
	return t
}

// left reports whether the client has closed its end.
func (c *conn) left() (left bool) {
	err := c.raw.Control(func(fd uintptr) { left = sock.HungUp(int(fd)) })
	return left || err != nil
}

// refuse counts a request that is not served, and returns the event that logs
// it.
func (c *conn) refuse(why server.Cause, err error) *zerolog.Event {
	ev := c.handler.srv.Refuse(why, 1)
	return logtext.WithCred(logtext.WithPeer(ev.Uint64("conn", c.ID), c.peer).Err(err), c.cred)
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
	c.Event().Err(err).Msgf("lost the connection: %v", err)
}
