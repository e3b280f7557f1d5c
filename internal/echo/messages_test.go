package echo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestMessagesComeBackWhole(t *testing.T) {
	t.Parallel()
	for _, typ := range []addr.Type{addr.Datagram, addr.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			srv := serveSocket(t, listenOn(t, typ), config{}, zerolog.Disabled)
			conn, r := dial(t, srv.Addr), sock.NewReceiver(sock.MaxMessage())
			// The server answers each message, whatever came before it.
			for _, size := range []int{0, 1, 0, 0, 16, 17, 65536, 200_000, 212_960, 0, 1} {
				sent, err := io.ReadAll(random(byte(size), int64(size)))
				check(t, err)
				wantBack(t, conn, r, string(sent))
			}
		})
	}
}

func TestF26EmptyMessagesAreEchoedAndTheNextIsAnswered(t *testing.T) {
	t.Parallel()
	rounds := testkit.Count(10, 100)
	messages := []string{"one", "", "two", "", "", "three", "12345678901234567", ""}
	empty := 0
	for _, typ := range []addr.Type{addr.Datagram, addr.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			srv := serveSocket(t, listenOn(t, typ), config{}, zerolog.Disabled)
			conn, r := dial(t, srv.Addr), sock.NewReceiver(100)
			for range rounds {
				// First one at a time, and then all of them in flight at once.
				for _, m := range messages {
					wantBack(t, conn, r, m)
				}
				for _, m := range messages {
					check(t, conn.Send([]byte(m)))
				}
				for i, want := range messages {
					got, err := conn.Receive(r)
					if err != nil || string(got) != want {
						t.Fatalf("message %d is %q, %v, not %q", i, got, err, want)
					}
					if want == "" {
						empty += 2
					}
				}
			}
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F26",
		Done:    "empty datagrams and records between others, one at a time and eight in flight",
		Count:   empty,
		Outcome: "every one came back empty and in its place; so did the message after it",
	})
}

func TestServesAllTypesAtOnce(t *testing.T) {
	t.Parallel()
	var sockets []*addr.Socket
	want := []string{}
	for _, typ := range unixTypes {
		s := listenOn(t, typ)
		sockets = append(sockets, s)
		want = append(want, "starting up on "+s.Addr.Path)
	}
	journal := newJournal()
	srv := config{Chunk: 16, Log: journal.Logger(zerolog.InfoLevel)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- srv.Serve(ctx, sockets...) }()
	for range 3 {
		for _, s := range sockets {
			out := &bytes.Buffer{}
			check(t, quiet(0).Message(t.Context(), dial(t, s.Addr), []byte(message), out))
			if out.String() != message {
				t.Errorf("%s: output is %q", s.Addr, out)
			}
		}
	}
	stop()
	check(t, <-done)
	if diff := cmp.Diff(append(want, "waiting for a connection"), journal.Messages()[:4]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHealthCheckOfEachTypePassesAndIsNotLogged(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			for _, level := range []zerolog.Level{zerolog.InfoLevel, zerolog.WarnLevel} {
				srv := serveSocket(t, listenOn(t, typ), config{}, level)
				if level == zerolog.InfoLevel {
					srv.Log.Await(t, 1, "waiting for a")
				}
				for range 3 {
					check(t, echo.Check(t.Context(), srv.Addr))
				}
				srv.Stop()
				srv.Ended(t)
				for _, e := range srv.Log.All() {
					if level == zerolog.WarnLevel || e.Peer != "" {
						t.Errorf("at level %v: %+v", level, e)
					}
				}
			}
			srv := serveSocket(t, listenOn(t, typ), config{}, zerolog.DebugLevel)
			srv.Log.Await(t, 1, "waiting for a")
			check(t, echo.Check(t.Context(), srv.Addr))
			srv.Log.Await(t, 1, "received 'are you well?")
			for _, e := range srv.Log.All() {
				if strings.HasPrefix(e.Message, "received") && e.Level != "debug" {
					t.Errorf("a health check is an event of level %s", e.Level)
				}
			}
		})
	}
}

func TestHealthCheckOfMessageTypesFails(t *testing.T) {
	t.Parallel()
	for _, typ := range []addr.Type{addr.Datagram, addr.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			silent := listenOn(t, typ)
			ctx, cancel := context.WithTimeout(t.Context(), unhurried)
			defer cancel()
			wantWords(t, echo.Check(ctx, silent.Addr), silent.Addr.String(), "connected, but no echo in time")
			check(t, silent.Close())
			wantWords(t, echo.Check(t.Context(), silent.Addr), silent.Addr.String(), "ENOENT")
		})
	}
}

// numbered returns n messages of seven bytes.
func numbered(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "%06d\n", i)
	}
	return b.Bytes()
}

func TestCopyOfManyMessagesComesBackIdentical(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		typ              addr.Type
		window, messages int
	}{
		{addr.Datagram, 8, 100_000},
		{addr.Datagram, 256, 100_000},
		{addr.Datagram, 1, 1000},
		{addr.Seqpacket, 8, 10_000},
		{addr.Seqpacket, 256, 10_000},
	} {
		t.Run(fmt.Sprintf("%s with %d in flight", tt.typ, tt.window), func(t *testing.T) {
			t.Parallel()
			srv := serveSocket(t, listenOn(t, tt.typ), config{}, zerolog.WarnLevel)
			sent, out := numbered(tt.messages), &bytes.Buffer{}
			client := echo.Client{Chunk: 7, Window: tt.window, Log: zerolog.Nop()}
			conn := dial(t, srv.Addr)
			check(t, conn.SetDeadline(time.Time{}))
			check(t, client.Copy(t.Context(), conn, bytes.NewReader(sent), out))
			if !bytes.Equal(out.Bytes(), sent) {
				t.Error("the echo differs from the bytes sent")
			}
			if m := srv.Log.Messages(); m != nil {
				t.Errorf("the server warns of %q", m)
			}
		})
	}
}

// recorder is a server that keeps the received messages, and echoes them.
func recorder(t *testing.T) (a addr.Addr, messages <-chan string) {
	t.Helper()
	kept := make(chan string, 100)
	a = odd(t, func(message []byte) [][]byte {
		kept <- string(message)
		return [][]byte{message}
	})
	return a, kept
}

// odd is a datagram server that answers each message with what answers
// returns.
func odd(t *testing.T, answers func(message []byte) [][]byte) addr.Addr {
	t.Helper()
	name := sock.AutoName("@")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	check(t, err)
	answerAll(t, conn, answers)
	return addr.Addr{Type: addr.Datagram, Path: name}
}

func answerAll(t *testing.T, conn net.PacketConn, answers func(message []byte) [][]byte) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<20)
		for {
			n, client, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, answer := range answers(buf[:n]) {
				_, _ = conn.WriteTo(answer, client)
			}
		}
	}()
	t.Cleanup(func() {
		check(t, conn.Close())
		<-done
	})
}

func TestCopySendsInputInMessages(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		chunk int
		in    string
		want  []string
	}{
		{0, "all of it", []string{"all of it"}},
		{0, "", []string{""}},
		{4, "all of it", []string{"all ", "of i", "t"}},
		{3, "all of it", []string{"all", " of", " it"}},
		{4, "", nil},
	} {
		a, messages := recorder(t)
		out := &bytes.Buffer{}
		client := echo.Client{Chunk: tt.chunk, Window: 2, Log: zerolog.Nop()}
		// The pieces do not match the messages.
		in := io.MultiReader(strings.NewReader(tt.in[:len(tt.in)/2]), strings.NewReader(tt.in[len(tt.in)/2:]))
		check(t, client.Copy(t.Context(), dial(t, a), in, out))
		var got []string
		for len(messages) > 0 {
			got = append(got, <-messages)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q by %d bytes (-want +got):\n%s", tt.in, tt.chunk, diff)
		}
		if out.String() != tt.in {
			t.Errorf("output is %q", out)
		}
	}
}

func TestNoMoreMessagesAreInFlightThanTheWindow(t *testing.T) {
	t.Parallel()
	a := odd(t, func([]byte) [][]byte { return nil })
	asked := make(chan struct{}, 100)
	in := readerFunc(func(p []byte) (int, error) {
		asked <- struct{}{}
		return copy(p, "x"), nil
	})
	client := echo.Client{Chunk: 1, Window: 3, Timeout: unhurried, Log: zerolog.Nop()}
	err := client.Copy(t.Context(), dial(t, a), in, io.Discard)
	wantWords(t, err, "no answer for "+unhurried.String()+": received 0 messages", "paused or overloaded")
	if n := len(asked); n != 4 { // the fourth waits for its turn
		t.Errorf("%d messages were made of the input, not 4", n)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestReplyOfAnotherLengthIsAnError(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{"", message[:16], message + "!"} {
		a := odd(t, func([]byte) [][]byte { return [][]byte{[]byte(reply)} })
		out := &bytes.Buffer{}
		err := quiet(0).Message(t.Context(), dial(t, a), []byte(message), out)
		if reply == "" {
			wantWords(t, err, "the server rejected the message of 42 bytes: it denies uid ")
		} else {
			wantWords(t, err, fmt.Sprintf("a message of 42 bytes was answered with %d bytes; the server is not an echo server", len(reply)))
		}
		if out.Len() > 0 {
			t.Errorf("output is %q", out)
		}
	}
}

func TestMessageClientFails(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.Disabled)
	reason := errors.New("enough")
	for name, tt := range map[string]struct {
		in    io.Reader
		out   io.Writer
		words string
	}{
		"input":     {broken{reason}, io.Discard, "read the input: enough"},
		"output":    {strings.NewReader(message), broken{reason}, "write the output: enough"},
		"too large": {bytes.NewReader(make([]byte, 212_961)), io.Discard, "212961 bytes, the socket sends at most 212960; raise SO_SNDBUF"},
	} {
		conn, err := addr.Dial(t.Context(), srv.Addr, sock.DialConfig{Bind: sock.AutoName("@"), SendBuffer: 212_992})
		check(t, err)
		err = quietMessages().Copy(t.Context(), conn, tt.in, tt.out)
		if err == nil || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: error is %v, not %q", name, err, tt.words)
		}
		_ = conn.Close()
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	a := odd(t, func([]byte) [][]byte { cancel(reason); return nil })
	if err := quietMessages().Message(ctx, dial(t, a), []byte(message), io.Discard); !errors.Is(err, reason) {
		t.Errorf("error is %v", err)
	}
}

func quietMessages() *echo.Client { return &echo.Client{Log: zerolog.Nop()} }

func TestTCPEcho(t *testing.T) {
	t.Parallel()
	s, err := addr.Listen(sock.ListenConfig{}, addr.Addr{Type: addr.TCP, Path: "127.0.0.1:0"})
	check(t, err)
	s.Addr.Path = boundTo(t, s)
	srv := serveSocket(t, s, config{}, zerolog.InfoLevel)
	conn, out := dial(t, srv.Addr), &bytes.Buffer{}
	check(t, quiet(0).Copy(t.Context(), conn, strings.NewReader(message), out))
	if out.String() != message {
		t.Errorf("output is %q", out)
	}
	srv.Log.Await(t, 2, "waiting for a connection")
	for _, e := range srv.Log.All()[2:] {
		if e.Peer != conn.LocalAddr().String() {
			t.Errorf("the peer is %s, not %s", e.Peer, conn.LocalAddr())
		}
	}
}
