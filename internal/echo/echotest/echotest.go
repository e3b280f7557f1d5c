// Package echotest holds what the tests of the server and of the echo share: a
// server that echoes in this process, with a log that can be waited for.
package echotest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// An Event is one event of the log, with the fields that the tests check.
type Event struct {
	Level, Message, Peer string
	Conn                 uint64
	Bytes                *int
	Refused, Dropped     uint64
}

// A Journal is a log that can be waited for.
type Journal struct {
	mu      sync.Mutex
	events  []Event
	changed chan struct{}
}

// NewJournal returns an empty journal.
func NewJournal() *Journal { return &Journal{changed: make(chan struct{})} }

// Logger returns a log that is written to the journal.
func (j *Journal) Logger(level zerolog.Level) zerolog.Logger { return zerolog.New(j).Level(level) }

// Write takes one event.
func (j *Journal) Write(line []byte) (int, error) {
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	close(j.changed)
	j.changed = make(chan struct{})
	return len(line), nil
}

// Await waits until n events have a message that starts with prefix.
func (j *Journal) Await(t testing.TB, n int, prefix string) {
	t.Helper()
	late := time.After(testkit.Patience)
	for {
		j.mu.Lock()
		found, changed := 0, j.changed
		for _, e := range j.events {
			if strings.HasPrefix(e.Message, prefix) {
				found++
			}
		}
		j.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%q came %d times, not %d; the log is %q", prefix, found, n, j.Messages())
		}
	}
}

// All returns the events so far.
func (j *Journal) All() []Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]Event(nil), j.events...)
}

// Messages returns their texts.
func (j *Journal) Messages() []string {
	var m []string
	for _, e := range j.All() {
		m = append(m, e.Message)
	}
	return m
}

// Listen makes a stream socket in a directory with a short path.
func Listen(t testing.TB) *addr.Socket {
	t.Helper()
	return ListenOn(t, addr.Stream)
}

// Message is the message of the transcript.
const Message = "This is the message.  It will be repeated."

// Connecting are the types that have connections.
var Connecting = []addr.Type{addr.Stream, addr.Seqpacket}

// UnixTypes are the types that the server handles alike.
var UnixTypes = []addr.Type{addr.Stream, addr.Datagram, addr.Seqpacket}

// ListenOn is Listen with a socket of a type.
func ListenOn(t testing.TB, typ addr.Type) *addr.Socket {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	testkit.Check(t, err)
	t.Cleanup(func() {
		if err := os.Remove(d); err != nil {
			t.Errorf("something is left behind: %v", err)
		}
	})
	s, err := addr.Listen(sock.ListenConfig{Mode: 0o666}, addr.Addr{Type: typ, Path: d + "/s"})
	testkit.Check(t, err)
	t.Cleanup(func() { testkit.Check(t, s.Close()) })
	return s
}

// A Config is that of a server which echoes.
type Config struct {
	Chunk, SendBuffer                       int
	IdleTimeout, WriteTimeout, DrainTimeout time.Duration
	MaxConnections, MaxConnectionsPerUser   int
	Memory                                  *server.Pool
	Allow                                   func(unix.Ucred) bool
	Handover                                *sock.Handover
	Stats                                   *server.Stats
	Log                                     zerolog.Logger
}

func (c Config) make() (*server.Server, *echo.Handler, error) {
	s, err := server.New(server.Config{
		DrainTimeout: c.DrainTimeout, MaxConnections: c.MaxConnections, MaxConnectionsPerUser: c.MaxConnectionsPerUser,
		Memory: c.Memory, Allow: c.Allow, Handover: c.Handover, Stats: c.Stats, Log: c.Log,
	})
	if err != nil {
		return nil, nil, err
	}
	return s, echo.New(s, echo.Config{Chunk: c.Chunk, SendBuffer: c.SendBuffer, IdleTimeout: c.IdleTimeout, WriteTimeout: c.WriteTimeout}), nil
}

// Serve serves sockets with a server of its own.
func (c Config) Serve(ctx context.Context, sockets ...*addr.Socket) error {
	s, h, err := c.make()
	if err != nil {
		return err
	}
	return s.Serve(ctx, server.Services(h, sockets...)...)
}

// ServeConn serves one connection.
func (c Config) ServeConn(ctx context.Context, fd int) error {
	s, h, err := c.make()
	if err != nil {
		return err
	}
	return s.ServeConn(ctx, fd, h)
}

// Running is a running server. Its log is at info level unless the server has
// one.
type Running struct {
	Addr addr.Addr
	Log  *Journal
	Stop context.CancelFunc
	Done chan error
}

// Serve serves a new stream socket.
func Serve(t testing.TB, s Config, level zerolog.Level) *Running {
	t.Helper()
	return ServeSocket(t, Listen(t), s, level)
}

// ServeSocket serves a socket until the end of the test.
func ServeSocket(t testing.TB, socket *addr.Socket, s Config, level zerolog.Level) *Running {
	t.Helper()
	r := &Running{Addr: socket.Addr, Log: NewJournal(), Done: make(chan error, 1)}
	s.Log = zerolog.Nop()
	if level != zerolog.Disabled {
		s.Log = r.Log.Logger(level)
	}
	if s.Chunk == 0 {
		s.Chunk = 16
	}
	ctx, stop := context.WithCancel(t.Context())
	r.Stop = stop
	go func() { r.Done <- s.Serve(ctx, socket) }()
	t.Cleanup(func() {
		stop()
		r.Ended(t)
	})
	return r
}

// Ended waits for the end of the server, which must return no error.
func (r *Running) Ended(t testing.TB) {
	t.Helper()
	select {
	case err := <-r.Done:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		r.Done <- nil
	case <-time.After(testkit.Patience):
		t.Fatal("the server does not end")
	}
}

// Dial connects to a server until the end of the test.
func Dial(t testing.TB, a addr.Addr) *sock.Conn {
	t.Helper()
	Config := sock.DialConfig{}
	if a.Type == addr.Datagram {
		Config.Bind = sock.AutoName(filepath.Dir(a.Path))
	}
	conn, err := addr.Dial(t.Context(), a, Config)
	testkit.Check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	testkit.Check(t, conn.SetDeadline(time.Now().Add(testkit.Patience)))
	return conn
}

// WantEcho sends a message on conn and wants the same bytes as the echo.
func WantEcho(t testing.TB, conn net.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(conn, message); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(message))
	if _, err := io.ReadFull(conn, back); err != nil {
		t.Fatal(err)
	}
	if string(back) != message {
		t.Fatalf("sent %q, got back %q", message, back)
	}
}

// Random returns n bytes that are the same for the same seed.
func Random(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// BoundTo returns the address of a TCP socket whose port the kernel chose.
func BoundTo(t testing.TB, s *addr.Socket) string {
	t.Helper()
	sa, err := unix.Getsockname(s.FD())
	testkit.Check(t, err)
	return fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
}

// WantBack sends a message on conn and wants the same message as the echo.
func WantBack(t testing.TB, conn *sock.Conn, r *sock.Receiver, message string) {
	t.Helper()
	testkit.Check(t, conn.Send([]byte(message)))
	back, err := conn.Receive(r)
	testkit.Check(t, err)
	if string(back) != message {
		t.Fatalf("sent %d bytes, got back %d", len(message), len(back))
	}
}

// A Correspondent is a datagram client that does not connect: its queue holds
// one message more than net.unix.max_dgram_qlen.
type Correspondent struct {
	*net.UnixConn
	Server *net.UnixAddr
}

// Correspond makes a correspondent of a server.
func Correspond(t testing.TB, srv addr.Addr) *Correspondent {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock.AutoName("@"), Net: "unixgram"})
	testkit.Check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	testkit.Check(t, conn.SetDeadline(time.Now().Add(testkit.Patience)))
	return &Correspondent{conn, &net.UnixAddr{Name: srv.Path, Net: "unixgram"}}
}

// Send sends a message.
func (c *Correspondent) Send(t testing.TB, message string) {
	t.Helper()
	_, err := c.WriteTo([]byte(message), c.Server)
	testkit.Check(t, err)
}

// Receive returns the next message.
func (c *Correspondent) Receive(t testing.TB) string {
	t.Helper()
	buf := make([]byte, 1<<20)
	n, err := c.Read(buf)
	testkit.Check(t, err)
	return string(buf[:n])
}

// QueueLength returns how many datagrams fit the queue of a socket that is not
// connected to their sender: the kernel refuses a message if the queue is
// longer than the limit.
func QueueLength(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/unix/max_dgram_qlen")
	testkit.Check(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	testkit.Check(t, err)
	return n + 1
}

// SendDescriptor sends a message together with a descriptor.
func SendDescriptor(t *testing.T, conn net.Conn, to *net.UnixAddr) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	testkit.Check(t, err)
	defer func() { _ = null.Close() }()
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("take this"), unix.UnixRights(int(null.Fd())), to)
	testkit.Check(t, err)
}
