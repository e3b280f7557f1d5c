package echo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = testkit.Patience

var (
	beside    = testkit.Beside
	check     = testkit.Check
	gone      = testkit.WantGone
	wantWords = testkit.WantError
)

// An event is one event of the log, with the fields that the tests check.
type event struct {
	Level, Message, Peer string
	Conn                 uint64
	Bytes                *int
	Refused, Dropped     uint64
}

// A journal is a log that can be waited for.
type journal struct {
	mu      sync.Mutex
	events  []event
	changed chan struct{}
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

func (j *journal) logger(level zerolog.Level) zerolog.Logger { return zerolog.New(j).Level(level) }

func (j *journal) Write(line []byte) (int, error) {
	var e event
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

// await waits until n events have a message that starts with prefix.
func (j *journal) await(t testing.TB, n int, prefix string) {
	t.Helper()
	late := time.After(patience)
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
			t.Fatalf("%q came %d times, not %d; the log is %q", prefix, found, n, j.messages())
		}
	}
}

func (j *journal) all() []event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]event(nil), j.events...)
}

func (j *journal) messages() []string {
	var m []string
	for _, e := range j.all() {
		m = append(m, e.Message)
	}
	return m
}

// listen makes a stream socket in a directory with a short path.
func listen(t testing.TB) *addr.Socket {
	t.Helper()
	return listenOn(t, addr.Stream)
}

// unixTypes are the types that the server handles alike.
var unixTypes = []addr.Type{addr.Stream, addr.Datagram, addr.Seqpacket}

func listenOn(t testing.TB, typ addr.Type) *addr.Socket {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() {
		if err := os.Remove(d); err != nil {
			t.Errorf("something is left behind: %v", err)
		}
	})
	s, err := addr.Listen(sock.ListenConfig{Mode: 0o666}, addr.Addr{Type: typ, Path: d + "/s"})
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// A config is that of a server which echoes.
type config struct {
	Chunk, SendBuffer                       int
	IdleTimeout, WriteTimeout, DrainTimeout time.Duration
	MaxConnections, MaxConnectionsPerUser   int
	Memory                                  *server.Pool
	Allow                                   func(unix.Ucred) bool
	Handover                                *sock.Handover
	Stats                                   *server.Stats
	Log                                     zerolog.Logger
}

func (c config) make() (*server.Server, *echo.Handler, error) {
	s, err := server.New(server.Config{
		DrainTimeout: c.DrainTimeout, MaxConnections: c.MaxConnections, MaxConnectionsPerUser: c.MaxConnectionsPerUser,
		Memory: c.Memory, Allow: c.Allow, Handover: c.Handover, Stats: c.Stats, Log: c.Log,
	})
	if err != nil {
		return nil, nil, err
	}
	return s, echo.New(s, echo.Config{Chunk: c.Chunk, SendBuffer: c.SendBuffer, IdleTimeout: c.IdleTimeout, WriteTimeout: c.WriteTimeout}), nil
}

func (c config) Serve(ctx context.Context, sockets ...*addr.Socket) error {
	s, h, err := c.make()
	if err != nil {
		return err
	}
	return s.Serve(ctx, server.Services(h, sockets...)...)
}

func (c config) ServeConn(ctx context.Context, fd int) error {
	s, h, err := c.make()
	if err != nil {
		return err
	}
	return s.ServeConn(ctx, fd, h)
}

// running is a running server. Its log is at info level unless the server has
// one.
type running struct {
	addr addr.Addr
	log  *journal
	stop context.CancelFunc
	done chan error
}

func serve(t testing.TB, s config, level zerolog.Level) *running {
	t.Helper()
	return serveSocket(t, listen(t), s, level)
}

func serveSocket(t testing.TB, socket *addr.Socket, s config, level zerolog.Level) *running {
	t.Helper()
	r := &running{addr: socket.Addr, log: newJournal(), done: make(chan error, 1)}
	s.Log = zerolog.Nop()
	if level != zerolog.Disabled {
		s.Log = r.log.logger(level)
	}
	if s.Chunk == 0 {
		s.Chunk = 16
	}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	go func() { r.done <- s.Serve(ctx, socket) }()
	t.Cleanup(func() {
		stop()
		r.ended(t)
	})
	return r
}

// ended waits for the end of the server, which must return no error.
func (r *running) ended(t testing.TB) {
	t.Helper()
	select {
	case err := <-r.done:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		r.done <- nil
	case <-time.After(patience):
		t.Fatal("the server does not end")
	}
}

func dial(t testing.TB, a addr.Addr) *sock.Conn {
	t.Helper()
	config := sock.DialConfig{}
	if a.Type == addr.Datagram {
		config.Bind = sock.AutoName(filepath.Dir(a.Path))
	}
	conn, err := addr.Dial(t.Context(), a, config)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// wantEcho sends a message on conn and wants the same bytes as the echo.
func wantEcho(t testing.TB, conn net.Conn, message string) {
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

// random returns n bytes that are the same for the same seed.
func random(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// boundTo returns the address of a TCP socket whose port the kernel chose.
func boundTo(t testing.TB, s *addr.Socket) string {
	t.Helper()
	sa, err := unix.Getsockname(s.FD())
	check(t, err)
	return fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
}
