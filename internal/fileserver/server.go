// Package fileserver is the server's side of passing files, see package files.
package fileserver

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

	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/stats"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

// A Server reads the files that clients send.
type Server struct {
	config Config
	warn   zerolog.Logger // for events that a client can cause as often as it likes

	// A reader holds one of these buffers for one part of a file. So neither a
	// huge file nor many files make others wait, or use more memory, or more
	// threads if a read hangs.
	turns  chan []byte
	spares chan []byte // for use while turns hang, see [turnPatience]
	// Closing a file may hang, too. At most this many do at a time; others
	// wait.
	closing chan struct{}
	stopped context.Context
	stop    func()

	mu      sync.Mutex
	conns   map[*conn]bool
	lastID  uint64
	serving sync.WaitGroup
}

// A Config configures a [Server].
type Config struct {
	// As in package echoserver: clients that request nothing for this long, or
	// do not read an answer, are disconnected; 0: no limit.
	IdleTimeout, WriteTimeout time.Duration
	Stats                     *stats.Server // counts rejected and disconnected clients
	Log                       zerolog.Logger
}

// NewServer returns a server that waits for connections, see [Server.Serve].
func NewServer(c Config) *Server {
	s := &Server{config: c, conns: map[*conn]bool{}}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.warn = c.Log.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second})
	// Leave one processor to the echo.
	turns := max(runtime.GOMAXPROCS(0)-1, 1)
	s.turns, s.spares, s.closing = make(chan []byte, turns+mayHang), make(chan []byte, mayHang), make(chan struct{}, mayHang)
	for range turns {
		s.turns <- nil // made at first use: most servers receive no files
	}
	for range mayHang {
		s.spares <- nil
	}
	return s
}

// Serve serves a connection in the background, and takes it over. It calls
// done when it has closed the connection. A quiet connection is not logged at
// info level.
func (s *Server) Serve(fd int, quiet bool, done func()) {
	c := &conn{server: s, quiet: quiet}
	if err := c.open(fd); err != nil {
		s.warn.Warn().Err(err).Msgf("cannot serve a client: %v", err)
		done()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	c.id = s.lastID
	s.conns[c] = true
	s.serving.Go(func() {
		defer done()
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// open sets up the connection on fd, and reads the peer's credentials.
func (c *conn) open(fd int) (err error) {
	f := os.NewFile(uintptr(fd), "")
	defer func() { _ = f.Close() }()
	c.peer = transport.PeerName(fd)
	if c.cred, err = transport.PeerCred(fd); err != nil {
		return err
	}
	if err := transport.PassCred(fd); err != nil {
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
func (s *Server) Stop() {
	s.stop()
	s.mu.Lock()
	for c := range s.conns {
		// Not here: closing a connection waits for its receive, which may hang
		// while it closes unexpected descriptors.
		s.serving.Go(func() { _ = c.conn.Close() })
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
	server *Server
	conn   *net.UnixConn
	raw    syscall.RawConn
	cred   *unix.Ucred
	peer   string
	id     uint64
	quiet  bool // it checks the server's health, and is not logged at info level
}

func (c *conn) serve() {
	defer func() { _ = c.conn.Close() }()
	transcript.WithCred(c.event(), c.cred).Msg("connection from")
	buf := make([]byte, files.MaxRecord)
	for {
		_ = c.conn.SetReadDeadline(within(c.server.config.IdleTimeout))
		record, fds, err := c.receive(buf)
		switch {
		case err == io.EOF:
			c.event().Msg("no data from")
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.turnAway(stats.Idle, fmt.Errorf("it has requested nothing for %v", c.server.config.IdleTimeout))
			return
		case errors.Is(err, uds.ErrDescriptors):
			c.turnAway(stats.Descriptors, fmt.Errorf("more than one descriptor was received, and all are closed; send one at a time"))
			return
		case errors.Is(err, uds.ErrOpenFiles):
			c.turnAway(stats.System, fmt.Errorf("the server has reached its limit of open files; try again later"))
			return
		case errors.Is(err, uds.ErrTruncated):
			c.turnAway(stats.Truncated, fmt.Errorf("the request has more than %d bytes; write %q", files.MaxRecord, files.Request))
			return
		case err != nil:
			c.lost(err)
			return
		}
		answer, err := c.answer(record, fds)
		var broken *protocolError
		switch {
		case errors.As(err, &broken):
			c.turnAway(stats.Request, err)
			return
		case errors.Is(err, errLeft), errors.Is(err, context.Canceled):
			c.lost(err)
			return
		case err != nil:
			c.refuse(stats.Request, err).Msgf("cannot read the received file: %v", err)
			answer = "error " + err.Error()
		}
		c.event().Int("bytes", len(answer)).Msg("sending " + transcript.Quote([]byte(answer)))
		_ = c.conn.SetWriteDeadline(within(c.server.config.WriteTimeout))
		if _, err := c.conn.Write([]byte(answer)); errors.Is(err, os.ErrDeadlineExceeded) {
			c.turnAway(stats.Unread, fmt.Errorf("it has not read for %v", c.server.config.WriteTimeout))
			return
		} else if err != nil {
			c.lost(err)
			return
		}
	}
}

// within returns the deadline for something that may take d; 0: no deadline.
func within(d time.Duration) (deadline time.Time) {
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	return deadline
}

func (c *conn) receive(buf []byte) (record []byte, fds []int, err error) {
	var n int
	waitErr := c.raw.Read(func(fd uintptr) bool {
		c.server.closing <- struct{}{} // unexpected descriptors are closed there
		n, fds, _, err = uds.ReceiveFiles(int(fd), buf, 1)
		<-c.server.closing
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		err = waitErr
	}
	return buf[:n], fds, err
}

// A protocolError means that a client has broken this protocol.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return e.text }

// answer reads the received file, and closes it.
func (c *conn) answer(record []byte, fds []int) (answer string, err error) {
	c.event().Int("bytes", len(record)).Int("descriptors", len(fds)).Msg("received " + transcript.Quote(record))
	if len(fds) == 0 {
		return "", &protocolError{fmt.Sprintf("no descriptor came with the request; send %q with one", files.Request)}
	}
	fd := fds[0]
	if string(record) != files.Request {
		c.server.close(fd)
		return "", &protocolError{fmt.Sprintf("unknown request %s: write %q", transcript.Quote(record), files.Request)}
	}
	defer c.server.close(fd)
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

func (s *Server) close(fd int) {
	s.closing <- struct{}{}
	uds.CloseFiles(fd)
	<-s.closing
}

var errLeft = errors.New("the client left before the answer")

// turn does one part of the work, when it is this client's turn, unless the
// client or the server has ended.
func (c *conn) turn(work func(buf []byte) error) error {
	select {
	case buf := <-c.server.turns:
		if buf == nil {
			buf = make([]byte, bufferSize)
		}
		defer c.server.giveBack(buf)()
		if c.server.stopped.Err() != nil {
			return c.server.stopped.Err()
		}
		if c.left() {
			return errLeft
		}
		return work(buf)
	case <-c.server.stopped.Done():
		return c.server.stopped.Err()
	}
}

// mayHang is how many files may hang the goroutine that reads or closes them,
// without stopping others: files of a file system that does not answer.
const mayHang = 4

// turnPatience is how long a turn may take before a spare turn is added.
const turnPatience = time.Second

// giveBack returns the function that ends a turn. It gives buf to the next
// client, unless the turn took so long that the next client has got a spare
// buffer.
func (s *Server) giveBack(buf []byte) (end func()) {
	fired := make(chan bool, 1)
	late := time.AfterFunc(turnPatience, func() {
		select {
		case spare := <-s.spares:
			s.turns <- spare
			fired <- true
		default:
			fired <- false
		}
	})
	return func() {
		if !late.Stop() && <-fired {
			s.spares <- buf
			return
		}
		s.turns <- buf
	}
}

// left reports whether the client has closed its end.
func (c *conn) left() (left bool) {
	err := c.raw.Control(func(fd uintptr) { left = transport.HungUp(int(fd)) })
	return left || err != nil
}

// refuse counts a request that is not served, and returns the event that logs
// it.
func (c *conn) refuse(why stats.Cause, err error) *zerolog.Event {
	ev := c.server.warn.Warn().Stringer("cause", why).Uint64("refused", c.server.config.Stats.Refuse(why, 1))
	return transcript.WithCred(ev.Uint64("conn", c.id).Str("peer", transcript.Escape(c.peer)).Err(err), c.cred)
}

// turnAway tells the client, and logs, why it is rejected. The caller closes
// the connection.
func (c *conn) turnAway(why stats.Cause, err error) {
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
	return c.server.config.Log.WithLevel(level).Uint64("conn", c.id).Str("peer", transcript.Escape(c.peer))
}
