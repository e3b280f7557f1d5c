package echo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// resuming is a client that counts how often it has connected again.
type resuming struct {
	echo.Client
	again atomic.Int64
}

func resumes(t *testing.T, a addr.Addr, patience time.Duration) *resuming {
	t.Helper()
	c := &resuming{Client: echo.Client{Chunk: 4096, Window: 8, Log: zerolog.Nop(), Patience: patience}}
	c.Redial = func(context.Context) (*sock.Conn, error) {
		c.again.Add(1)
		return dial(t, a), nil
	}
	return c
}

// stubs is a server that handles each client in its own way: the first in one
// way, the next in another, and all later ones in the last way.
func stubs(t *testing.T, typ addr.Type, ways ...func(conn *net.UnixConn)) addr.Addr {
	t.Helper()
	socket := listenOn(t, typ)
	l, err := sock.NetListener(socket.FD())
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			ways[min(i, len(ways)-1)](conn.(*net.UnixConn))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		check(t, l.Close())
		<-done
	})
	return socket.Addr
}

// echoes sends n bytes back, and then ends.
func echoes(n int64) func(*net.UnixConn) {
	return func(conn *net.UnixConn) { _, _ = io.CopyN(conn, conn, n) }
}

func ends(*net.UnixConn) {}

// ways are both ways to send.
var ways = map[string]func(c *resuming, conn *sock.Conn, message string, out io.Writer) error{
	"message": func(c *resuming, conn *sock.Conn, message string, out io.Writer) error {
		return c.Message(context.Background(), conn, []byte(message), out)
	},
	"copy": func(c *resuming, conn *sock.Conn, message string, out io.Writer) error {
		return c.Copy(context.Background(), conn, strings.NewReader(message), out)
	},
}

func TestBrokenTransferContinuesWhereItBroke(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		for name, send := range ways {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				t.Parallel()
				first := int64(5)
				if typ == addr.Seqpacket {
					first = 0 // a record returns whole or not at all
				}
				a := stubs(t, typ, echoes(first), ends, echoes(1000))
				c := resumes(t, a, patience)
				out := &bytes.Buffer{}
				check(t, send(c, dial(t, a), message, out))
				if out.String() != message {
					t.Errorf("received %q", out)
				}
				if n := c.again.Load(); n != 2 {
					t.Errorf("connected again %d times", n)
				}
			})
		}
	}
}

// A datagram server has no connection to break: silence counts as the end.
func TestDatagramsContinueAfterSilence(t *testing.T) {
	t.Parallel()
	for name, send := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dead := listenOn(t, addr.Datagram)
			srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.Disabled)
			c := resumes(t, srv.Addr, patience)
			c.Timeout = 50 * time.Millisecond
			out := &bytes.Buffer{}
			check(t, send(c, dial(t, dead.Addr), message, out))
			if out.String() != message {
				t.Errorf("received %q", out)
			}
		})
	}
}

func TestEmptyMessageIsSentAgain(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{}, zerolog.Disabled)
	c := resumes(t, srv.Addr, patience)
	check(t, c.Message(t.Context(), dial(t, stubs(t, addr.Seqpacket, ends)), nil, io.Discard))
	if n := c.again.Load(); n != 1 {
		t.Errorf("connected again %d times", n)
	}
}

func TestTransferEndsAfterPatienceWithTheReason(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		for name, s := range map[string]config{
			"refused": {Allow: func(unix.Ucred) bool { return false }},
			"full":    {MaxConnections: 1},
		} {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				t.Parallel()
				srv := serveSocket(t, listenOn(t, typ), s, zerolog.InfoLevel)
				if name == "full" {
					dial(t, srv.Addr)
					srv.Log.Await(t, 1, "connection from")
				}
				c := resumes(t, srv.Addr, unhurried/4)
				tried := "tried for " + (unhurried / 4).String()
				out := &bytes.Buffer{}
				err := c.Message(t.Context(), dial(t, srv.Addr), []byte(message), out)
				if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
					wantWords(t, err, tried)
				} else {
					wantWords(t, err, "it may be at its connection limit, or deny uid ", tried)
				}
				if c.again.Load() == 0 || out.Len() > 0 {
					t.Errorf("connected again %d times, received %q", c.again.Load(), out)
				}
			})
		}
	}
}

func TestRefusedDatagramIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := config{Allow: func(unix.Ucred) bool { return false }}
	srv := serveSocket(t, listenOn(t, addr.Datagram), s, zerolog.Disabled)
	c := resumes(t, srv.Addr, patience)
	wantWords(t, c.Message(t.Context(), dial(t, srv.Addr), []byte(message), io.Discard), "it denies uid ")
	if n := c.again.Load(); n != 0 {
		t.Errorf("connected again %d times", n)
	}
}

// Every connection returns one byte, and all of them together take longer than
// the patience.
func TestProgressRenewsThePatience(t *testing.T) {
	t.Parallel()
	a := stubs(t, addr.Stream, echoes(1))
	c := resumes(t, a, unhurried) // for each byte
	redial := c.Redial
	c.Redial = func(ctx context.Context) (*sock.Conn, error) {
		<-time.After(unhurried / 8)
		return redial(ctx)
	}
	out := &bytes.Buffer{}
	check(t, c.Message(t.Context(), dial(t, a), []byte("0123456789"), out))
	if out.String() != "0123456789" {
		t.Errorf("received %q", out)
	}
}

// The user types nothing for longer than the patience, and the server ends
// twice meanwhile.
func TestIdleTransferOutlivesItsServers(t *testing.T) {
	t.Parallel()
	patience := unhurried / 10
	over := make(chan struct{})
	idle := func(*net.UnixConn) { <-time.After(3 * patience) }
	a := stubs(t, addr.Stream, idle, idle, func(conn *net.UnixConn) {
		close(over)
		_, _ = io.Copy(conn, conn)
	})
	c := resumes(t, a, patience)
	in, typed := io.Pipe()
	out, copied := &bytes.Buffer{}, make(chan error)
	conn := dial(t, a)
	go func() { copied <- c.Copy(t.Context(), conn, in, out) }()
	<-over
	_, err := io.WriteString(typed, "hello\n")
	check(t, err)
	check(t, typed.Close())
	check(t, <-copied)
	if out.String() != "hello\n" {
		t.Errorf("received %q", out)
	}
}

// errno is an error of a file that looks like an error of the connection.
func TestErrorsOfInputAndOutputAreNotTheConnections(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		for name, tt := range map[string]struct {
			in    io.Reader
			out   io.Writer
			words string
		}{
			"output": {strings.NewReader(message), broken{unix.EPIPE}, "write the output: broken pipe"},
			"input":  {io.MultiReader(strings.NewReader(message), broken{unix.ECONNRESET}), io.Discard, "read the input: connection reset"},
		} {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				t.Parallel()
				srv := serveSocket(t, listenOn(t, typ), config{}, zerolog.Disabled)
				c := resumes(t, srv.Addr, patience)
				wantWords(t, c.Copy(t.Context(), dial(t, srv.Addr), tt.in, tt.out), tt.words)
				if n := c.again.Load(); n != 0 {
					t.Errorf("connected again %d times", n)
				}
			})
		}
	}
}

// Resuming works for echoes only: any other answer would be counted as the
// echo.
func TestOtherAnswersAreNotTakenForTheEcho(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		for answer, want := range map[string]string{
			"HELLO":          "not an echo server",
			"hello and more": "not an echo server",
		} {
			t.Run(string(typ)+" "+answer, func(t *testing.T) {
				t.Parallel()
				a := stubs(t, typ, func(conn *net.UnixConn) {
					_, _ = conn.Read(make([]byte, 16))
					_, _ = io.WriteString(conn, answer)
					silent(conn)
				})
				c := resumes(t, a, patience)
				out := &bytes.Buffer{}
				wantWords(t, c.Copy(t.Context(), dial(t, a), strings.NewReader("hello"), out), want)
				if c.again.Load() != 0 || out.Len() > 0 {
					t.Errorf("connected again %d times, received %q", c.again.Load(), out)
				}
			})
		}
	}
}

func TestTransferEndsWithItsContext(t *testing.T) {
	t.Parallel()
	a := stubs(t, addr.Stream, ends)
	ctx, stop := context.WithCancelCause(t.Context())
	c := resumes(t, a, patience)
	why := errors.New("enough")
	c.Redial = func(ctx context.Context) (*sock.Conn, error) {
		stop(why)
		return nil, context.Cause(ctx)
	}
	if err := c.Message(ctx, dial(t, a), []byte(message), io.Discard); err != why {
		t.Errorf("the error is %v", err)
	}
}

// A server that answers late gets the rest when it does.
func TestTransferContinuesOnceAServerAnswers(t *testing.T) {
	t.Parallel()
	const kept = 8 << 20
	sent, err := io.ReadAll(random(7, 2*kept))
	check(t, err)
	for _, typ := range connecting {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			a := stubs(t, typ, func(conn *net.UnixConn) {
				var late bytes.Buffer
				buf := make([]byte, 64<<10)
				for late.Len() < kept {
					n, err := conn.Read(buf)
					if err != nil {
						t.Error(err)
						return
					}
					late.Write(buf[:n])
				}
				for late.Len() > 0 {
					if _, err := conn.Write(late.Next(len(buf))); err != nil {
						t.Error(err)
						return
					}
				}
				_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, buf)
			})
			c := resumes(t, a, patience)
			c.Chunk, c.Window = 64<<10, 1000
			var back bytes.Buffer
			check(t, c.Copy(t.Context(), dial(t, a), bytes.NewReader(sent), &back))
			if !bytes.Equal(back.Bytes(), sent) {
				t.Errorf("received %d of %d bytes, and they differ", back.Len(), len(sent))
			}
			if n := c.again.Load(); n != 0 {
				t.Errorf("connected again %d times", n)
			}
		})
	}
}

// zeros is an input without a newline and without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// No part of the line can be sent, and the client reads no more of it than it
// keeps.
func TestEndlessLineIsAnErrorOfItsSize(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{}, zerolog.Disabled)
	c := resumes(t, srv.Addr, patience)
	c.Chunk, c.Lines = 0, true
	err := c.Copy(t.Context(), dial(t, srv.Addr), zeros{}, io.Discard)
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("the error is %v", err)
	}
}

// bad is a proxy before a server.
func bad(t *testing.T, typ addr.Type, seed uint64, most int) (a addr.Addr) {
	t.Helper()
	srv := serveSocket(t, listenOn(t, typ), config{Chunk: 4096}, zerolog.Disabled)
	a = addr.Addr{Type: typ, Path: srv.Addr.Path + ".bad"}
	testkit.StartProxy(t, seed, a.Network(), a.Path, srv.Addr.Path, most)
	return a
}

// The bytes received, with an error or without, are the bytes sent, in order.
func TestNoByteIsLostOrWrongOnABadLine(t *testing.T) {
	t.Parallel()
	first := testkit.Seed(t)
	for _, typ := range connecting {
		for seed := first; seed < first+10; seed++ {
			t.Run(fmt.Sprintf("%s %d", typ, seed), func(t *testing.T) {
				t.Parallel()
				sent, err := io.ReadAll(random(byte(seed), 4<<20))
				check(t, err)

				a := bad(t, typ, seed, 1<<20)
				c := resumes(t, a, patience)
				back := &bytes.Buffer{}
				check(t, c.Copy(t.Context(), dial(t, a), bytes.NewReader(sent), back))
				if !bytes.Equal(back.Bytes(), sent) {
					t.Errorf("received %d of %d bytes, and they differ", back.Len(), len(sent))
				}
				if c.again.Load() == 0 {
					t.Error("nothing broke")
				}

				c.Redial = nil
				back.Reset()
				if err := c.Copy(t.Context(), dial(t, a), bytes.NewReader(sent), back); err == nil {
					t.Error("without --retry there is no error")
				}
				if !bytes.HasPrefix(sent, back.Bytes()) {
					t.Errorf("received %d bytes, and they are not the first bytes sent", back.Len())
				}
			})
		}
	}
}

func TestShortMessagesComeBackOverABadLine(t *testing.T) {
	t.Parallel()
	first := testkit.Seed(t)
	for _, typ := range connecting {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			a := bad(t, typ, first, 300)
			for n := range 100 {
				m := strings.Repeat(fmt.Sprint(n, " "), 1+n%40)
				back := &bytes.Buffer{}
				c := resumes(t, a, patience)
				check(t, c.Message(t.Context(), dial(t, a), []byte(m), back))
				if back.String() != m {
					t.Fatalf("sent %q, got back %q", m, back)
				}
			}
		})
	}
}
