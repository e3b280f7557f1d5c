package echo_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// stub returns the address of a server that runs the given function for one
// client, and then closes the connection.
func stub(t *testing.T, srv func(conn *net.UnixConn)) addr.Addr {
	t.Helper()
	socket := listen(t)
	l, err := sock.NetListener(socket.FD())
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		srv(conn.(*net.UnixConn))
		_ = conn.Close()
	}()
	t.Cleanup(func() {
		check(t, l.Close())
		<-done
	})
	return socket.Addr
}

// against returns a client's connection to a stub, without a deadline of its
// own.
func against(t *testing.T, srv func(conn *net.UnixConn)) *sock.Conn {
	t.Helper()
	conn := dial(t, stub(t, srv))
	check(t, conn.SetDeadline(time.Time{}))
	return conn
}

// silent reads everything and answers nothing, until the client ends.
func silent(conn *net.UnixConn) { _, _ = io.Copy(io.Discard, conn) }

// mute is silent, and does not even end when the client's direction ends.
func mute(over <-chan struct{}) func(*net.UnixConn) {
	return func(conn *net.UnixConn) { silent(conn); <-over }
}

func quiet(timeout time.Duration) *echo.Client {
	return &echo.Client{Chunk: 16, Timeout: timeout, Log: zerolog.Nop()}
}

func TestCopyOfMuchIsByteExact(t *testing.T) {
	t.Parallel()
	size := testkit.Count[int64](8<<20, 64<<20)
	srv := serve(t, config{Chunk: 64 << 10}, zerolog.Disabled)
	journal := newJournal()
	client := echo.Client{Chunk: 64 << 10, Log: journal.Logger(zerolog.InfoLevel)}
	conn := dial(t, srv.Addr)
	sent, got := sha256.New(), sha256.New()
	check(t, client.Copy(t.Context(), conn, io.TeeReader(random(3, size), sent), got))
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Error("the echo differs from the bytes sent")
	}
	if diff := cmp.Diff([]string{"sending standard input"}, journal.Messages()); diff != "" {
		t.Errorf("at info level (-want +got):\n%s", diff)
	}
}

func TestCopyOfNothingEnds(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.Disabled)
	out := &bytes.Buffer{}
	check(t, quiet(0).Copy(t.Context(), dial(t, srv.Addr), strings.NewReader(""), out))
	check(t, quiet(0).Message(t.Context(), dial(t, srv.Addr), nil, out))
	if out.Len() > 0 {
		t.Errorf("output is %q", out)
	}
}

func TestMessageReceivesNoMoreThanItSent(t *testing.T) {
	t.Parallel()
	conn := against(t, func(conn *net.UnixConn) {
		_, _ = io.WriteString(conn, "hello and more")
		silent(conn)
	})
	out := &bytes.Buffer{}
	check(t, quiet(0).Message(t.Context(), conn, []byte("hello"), out))
	if out.String() != "hello" {
		t.Errorf("output is %q", out)
	}
}

func TestClientReportsThatTheServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(*sock.Conn) error{
		"message": func(conn *sock.Conn) error {
			return quiet(50*time.Millisecond).Message(t.Context(), conn, []byte(message), io.Discard)
		},
		"copy": func(conn *sock.Conn) error {
			return quiet(50*time.Millisecond).Copy(t.Context(), conn, strings.NewReader(message), io.Discard)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			conn := against(t, mute(over))
			err := send(conn)
			close(over)
			wantWords(t, err, "no answer for 50ms", "received 0 of 42 bytes", "paused or overloaded")
			check(t, conn.Close())
		})
	}
}

// watched reports each wait for bytes.
type watched struct {
	*net.UnixConn
	waits chan struct{}
}

func (w *watched) SetReadDeadline(d time.Time) error {
	w.waits <- struct{}{}
	return w.UnixConn.SetReadDeadline(d)
}

// idle is an input that returns nothing more until it is over.
type idle struct {
	first io.Reader
	asked chan<- struct{} // closed when the first read has returned and the next one waits
	over  <-chan struct{}
}

func (i *idle) Read(p []byte) (int, error) {
	if n, err := i.first.Read(p); err == nil {
		return n, nil
	}
	close(i.asked)
	<-i.over
	return 0, io.EOF
}

func TestIdleInputIsNotATimeout(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"", "hello"} {
		t.Run("after "+first, func(t *testing.T) {
			t.Parallel()
			timeout := 20 * time.Millisecond
			if first != "" {
				timeout = unhurried // it limits the answer too
			}
			asked, over := make(chan struct{}), make(chan struct{})
			echoed := make(chan struct{})
			conn := against(t, func(conn *net.UnixConn) {
				<-asked
				_, _ = io.WriteString(conn, first)
				close(echoed)
				silent(conn)
			})
			w := &watched{conn.Conn.(*net.UnixConn), make(chan struct{})}
			result, out := make(chan error), &bytes.Buffer{}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			go func() {
				result <- quiet(timeout).Copy(ctx, &sock.Conn{Conn: w}, &idle{strings.NewReader(first), asked, over}, out)
			}()
			// The first wait ends with the answer, the others with the
			// timeout.
			for n := 0; n < 3; {
				select {
				case <-w.waits:
					select {
					case <-echoed:
						n++
					default:
					}
				case err := <-result:
					t.Fatalf("an input that is idle ends it: %v", err)
				}
			}
			stop()
			for {
				select {
				case <-w.waits:
					continue
				case err := <-result:
					if !errors.Is(err, context.Canceled) {
						t.Errorf("error is %v", err)
					}
				}
				break
			}
			close(over)
			if out.String() != first {
				t.Errorf("output is %q", out)
			}
		})
	}
}

func TestServerThatClosesEarlyIsAnErrorWithCounts(t *testing.T) {
	t.Parallel()
	takes := func(n int, gives string, asked <-chan struct{}) func(*net.UnixConn) {
		return func(conn *net.UnixConn) {
			if _, err := io.ReadFull(conn, make([]byte, n)); err != nil {
				t.Error(err)
			}
			<-asked
			_, _ = io.WriteString(conn, gives)
		}
	}
	now, over := make(chan struct{}), make(chan struct{})
	close(now)

	conn := against(t, takes(len(message), message[:10], now))
	err := quiet(0).Message(t.Context(), conn, []byte(message), io.Discard)
	wantWords(t, err, "received 10 of ")

	asked := make(chan struct{})
	conn = against(t, takes(len(message), message[:10], asked))
	err = quiet(0).Copy(t.Context(), conn, &idle{strings.NewReader(message), asked, now}, io.Discard)
	wantWords(t, err, "received 10 of 42 bytes before the server closed the connection")

	// Before the end of the input, otherwise no server would read the rest.
	defer close(over)
	asked = make(chan struct{})
	conn = against(t, takes(len(message), message, asked))
	err = quiet(0).Copy(t.Context(), conn, &idle{strings.NewReader(message), asked, over}, io.Discard)
	wantWords(t, err, "received 42 of 42 bytes before the server closed the connection")
}

// A server that had not read everything resets the connection.
func TestServerThatClosesUnreadIsAnErrorWithCounts(t *testing.T) {
	t.Parallel()
	conn := against(t, func(conn *net.UnixConn) {
		_, _ = io.ReadFull(conn, make([]byte, 10))
		_, _ = io.WriteString(conn, message[:10])
	})
	out := &bytes.Buffer{}
	err := quiet(0).Message(t.Context(), conn, []byte(message), out)
	wantWords(t, err, "received 10 of 42 bytes before the server closed the connection")
	if out.String() != message[:10] {
		t.Errorf("output is %q", out)
	}
}

// late is a connection whose Write reports that everything is sent, and
// returns only when the test allows it.
type late struct {
	*watched
	written chan<- struct{}
	back    <-chan struct{}
}

func (l *late) Write(p []byte) (int, error) {
	n, err := l.watched.Write(p)
	close(l.written)
	<-l.back
	return n, err
}

// The goroutine that writes may wake up long after the echo has arrived. Its
// bytes are no longer due by then.
func TestWriteThatReturnsLateIsNotATimeout(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{Chunk: len(message)}, zerolog.Disabled)
	written, back := make(chan struct{}), make(chan struct{})
	asked, over := make(chan struct{}), make(chan struct{})
	waits := make(chan struct{})
	conn := &late{&watched{dial(t, srv.Addr).Conn.(*net.UnixConn), waits}, written, back}
	result, out := make(chan error), &bytes.Buffer{}
	go func() {
		client := quiet(unhurried)
		client.Chunk = len(message)
		result <- client.Copy(t.Context(), &sock.Conn{Conn: conn}, &idle{strings.NewReader(message), asked, over}, out)
	}()
	<-written
	for range 3 { // for the echo, for more, and again after the timeout
		select {
		case <-waits:
		case err := <-result:
			t.Fatalf("an echo in time ends it: %v", err)
		}
	}
	close(back)
	for ended := false; !ended; {
		select {
		case <-asked:
			close(over)
			asked = nil
		case <-waits:
		case err := <-result:
			check(t, err)
			ended = true
		}
	}
	if out.String() != message {
		t.Errorf("output is %q", out)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	t.Parallel()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	conn := against(t, func(conn *net.UnixConn) {
		_, _ = io.ReadFull(conn, make([]byte, len(message)))
		cancel(reason)
		silent(conn)
	})
	if err := quiet(0).Message(ctx, conn, []byte(message), io.Discard); !errors.Is(err, reason) {
		t.Errorf("error is %v", err)
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error)  { return 0, b.err }
func (b broken) Write([]byte) (int, error) { return 0, b.err }

func TestBrokenInputAndOutputAreErrors(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.Disabled)
	err := quiet(0).Copy(t.Context(), dial(t, srv.Addr), broken{unix.EIO}, io.Discard)
	if !errors.Is(err, unix.EIO) {
		t.Errorf("error is %v", err)
	}
	wantWords(t, err, "read the input")
	err = quiet(0).Message(t.Context(), dial(t, srv.Addr), []byte(message), broken{unix.EPIPE})
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("error is %v", err)
	}
	wantWords(t, err, "write the output")
}

func TestHealthCheckPassesAndIsNotLogged(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.InfoLevel)
	check(t, echo.Check(t.Context(), srv.Addr))
	conn := dial(t, srv.Addr)
	wantEcho(t, conn, "hello")
	check(t, conn.Close())
	srv.Log.Await(t, 2, "waiting for a connection")
	if diff := cmp.Diff([]string{
		"starting up on " + srv.Addr.Path,
		"waiting for a connection",
		"connection from",
		"received 'hello'",
		"sending data back to the client",
		"received ''",
		"no data from",
		"waiting for a connection",
	}, srv.Log.Messages()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHealthCheckIsLoggedAtDebugLevel(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.DebugLevel)
	check(t, echo.Check(t.Context(), srv.Addr))
	srv.Log.Await(t, 1, "no data from")
	for _, e := range srv.Log.All() {
		if e.Message == "connection from" && e.Level != "debug" {
			t.Errorf("a health check is an event of level %s", e.Level)
		}
	}
}

func TestHealthCheckFails(t *testing.T) {
	t.Parallel()
	t.Run("no server", func(t *testing.T) {
		t.Parallel()
		s := listen(t)
		check(t, s.Close())
		err := echo.Check(t.Context(), s.Addr)
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("never accepts", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), unhurried) // it connects in time
		defer cancel()
		s := listen(t)
		wantWords(t, echo.Check(ctx, s.Addr), s.Addr.String(), "connected, but no echo in time", "paused or overloaded")
	})
	for name, tt := range map[string]struct {
		srv   func(*net.UnixConn)
		words string
	}{
		"never answers": {silent, "no echo in time"},
		"other answer": {func(conn *net.UnixConn) {
			_, _ = io.ReadFull(conn, make([]byte, 13))
			_, _ = io.WriteString(conn, "I am\nnot well and have much to say")
			silent(conn)
		}, `received 'I am\nnot well'; the server is not an echo server`},
		"closes": {func(conn *net.UnixConn) { _, _ = io.ReadFull(conn, make([]byte, 13)) }, "received 0 of 13 bytes before the server closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), unhurried)
			defer cancel()
			if name != "never answers" {
				ctx = t.Context()
			}
			a := stub(t, tt.srv)
			wantWords(t, echo.Check(ctx, a), a.String(), tt.words)
		})
	}
}
