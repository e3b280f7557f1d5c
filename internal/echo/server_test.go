package echo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

const message = "This is the message.  It will be repeated."

func TestTranscripts(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.InfoLevel)
	journal, out := newJournal(), &bytes.Buffer{}
	client := echo.Client{Chunk: 16, Log: journal.logger(zerolog.InfoLevel)}
	conn := dial(t, srv.addr)
	check(t, client.Message(t.Context(), conn, []byte(message), out))
	check(t, conn.Close())
	srv.log.await(t, 2, "waiting for a connection")

	if diff := cmp.Diff([]string{
		"starting up on " + srv.addr.Path,
		"waiting for a connection",
		"connection from",
		"received 'This is the mess'",
		"sending data back to the client",
		"received 'age.  It will be'",
		"sending data back to the client",
		"received ' repeated.'",
		"sending data back to the client",
		"received ''",
		"no data from",
		"waiting for a connection",
	}, srv.log.messages()); diff != "" {
		t.Errorf("server (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"sending 'This is the message.  It will be repeated.'",
		"received 'This is the mess'",
		"received 'age.  It will be'",
		"received ' repeated.'",
	}, journal.messages()); diff != "" {
		t.Errorf("client (-want +got):\n%s", diff)
	}
	if out.String() != message {
		t.Errorf("output is %q", out)
	}
}

func TestEventsNameTheirClientInFields(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.InfoLevel)
	name := sock.AutoName("@")
	for served := range 2 {
		conn, err := addr.Dial(t.Context(), srv.addr, sock.DialConfig{Bind: name})
		check(t, err)
		wantEcho(t, conn, "hello")
		check(t, conn.Close())
		srv.log.await(t, served+2, "waiting for a connection")
	}
	five, zero := 5, 0
	var want []event
	for id := range uint64(2) {
		of := event{Level: "info", Peer: name, Conn: id + 1}
		for _, e := range []event{
			{Message: "connection from"},
			{Message: "received 'hello'", Bytes: &five},
			{Message: "sending data back to the client", Bytes: &five},
			{Message: "received ''", Bytes: &zero},
			{Message: "no data from"},
			{Message: "waiting for a connection"},
		} {
			of.Message, of.Bytes = e.Message, e.Bytes
			want = append(want, of)
		}
	}
	if diff := cmp.Diff(want, srv.log.all()[2:]); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestManyClientsAtOnceGetTheirOwnBytes(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.Disabled)
	var wg sync.WaitGroup
	for i := range 100 {
		conn := dial(t, srv.addr)
		wg.Go(func() {
			sent, err := io.ReadAll(random(byte(i), 20_000))
			if err != nil {
				t.Error(err)
				return
			}
			out := &bytes.Buffer{}
			client := echo.Client{Chunk: 1000, Log: zerolog.Nop()}
			if err := client.Copy(t.Context(), conn, bytes.NewReader(sent), out); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(out.Bytes(), sent) {
				t.Errorf("client %d got other bytes than it sent", i)
			}
		})
	}
	wg.Wait()
}

func TestServesSeveralSockets(t *testing.T) {
	t.Parallel()
	a, b := listen(t), listen(t)
	journal := newJournal()
	srv := config{Chunk: 16, Log: journal.logger(zerolog.InfoLevel)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- srv.Serve(ctx, a, b) }()
	for _, s := range []addr.Addr{a.Addr, b.Addr, a.Addr} {
		wantEcho(t, dial(t, s), "hello")
	}
	stop()
	check(t, <-done)
	if diff := cmp.Diff([]string{
		"starting up on " + a.Addr.Path,
		"starting up on " + b.Addr.Path,
		"waiting for a connection",
	}, journal.messages()[:3]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClientThatNeverReadsStopsNoOtherClient(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{Chunk: 4096}, zerolog.Disabled)
	sent, err := io.ReadAll(random(1, 8<<20))
	check(t, err)

	// It writes until the server accepts nothing more.
	lazy := dial(t, srv.addr)
	check(t, lazy.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	n, err := lazy.Write(sent)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes were taken from a client that does not read: %v", n, err)
	}

	for range 10 {
		wantEcho(t, dial(t, srv.addr), message)
	}

	check(t, lazy.CloseWrite())
	got, err := io.ReadAll(lazy)
	check(t, err)
	if !bytes.Equal(got, sent[:n]) {
		t.Errorf("%d bytes were taken, %d came back, equal: %t", n, len(got), bytes.HasPrefix(sent, got))
	}
}

func TestF24HalfCloseLosesNothing(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{Chunk: 64 << 10}, zerolog.Disabled)
	const n, size = 3, 16 << 20
	for round := range byte(n) {
		sent, err := io.ReadAll(random(round, size))
		check(t, err)
		conn := dial(t, srv.addr)
		var writer sync.WaitGroup
		writer.Go(func() {
			if _, err := conn.Write(sent); err != nil {
				t.Error(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		got, err := io.ReadAll(conn)
		writer.Wait()
		check(t, err)
		if !bytes.Equal(got, sent) {
			t.Fatalf("received %d of %d bytes", len(got), len(sent))
		}
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F24", Done: "16 MiB sent, then the writing side closed", Count: n,
		Outcome: fmt.Sprintf("each time %d MiB back, byte for byte, then end of file", size>>20),
	})
}

func TestClientThatDisconnectsDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.InfoLevel)
	for range 5 {
		conn := dial(t, srv.addr)
		_, err := conn.Write(make([]byte, 1000))
		check(t, err)
		// Bytes are unread, so both the server's sends and its receives fail.
		check(t, conn.Close())
	}
	srv.log.await(t, 6, "waiting for a connection")
	wantEcho(t, dial(t, srv.addr), message)
}

func TestDrainLetsRunningEchoesEnd(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{DrainTimeout: patience}, zerolog.DebugLevel)
	conn := dial(t, srv.addr)
	wantEcho(t, conn, "before")
	srv.stop()
	srv.log.await(t, 1, "draining")

	wantEcho(t, conn, "after")
	check(t, conn.CloseWrite())
	rest, err := io.ReadAll(conn)
	if err != nil || len(rest) > 0 {
		t.Errorf("at the end came %q, %v", rest, err)
	}
	srv.ended(t)
	gone(t, srv.addr.Path)
	gone(t, beside(srv.addr.Path, ".lock"))
	_, err = addr.Dial(t.Context(), srv.addr, sock.DialConfig{})
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a late client gets %v", err)
	}
}

func TestDrainServesConnectionsThatWereNotYetAccepted(t *testing.T) {
	t.Parallel()
	socket := listen(t)
	// More than the server accepts in one turn, and it is told to stop after
	// one.
	var conns []*sock.Conn
	for i := range 200 {
		conn := dial(t, socket.Addr)
		_, err := fmt.Fprintf(conn, "client %d", i)
		check(t, err)
		check(t, conn.CloseWrite())
		conns = append(conns, conn)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	srv := config{Chunk: 16, DrainTimeout: patience, Log: zerolog.Nop()}
	check(t, srv.Serve(ctx, socket))
	for i, conn := range conns {
		got, err := io.ReadAll(conn)
		check(t, err)
		if want := fmt.Sprintf("client %d", i); string(got) != want {
			t.Fatalf("got back %q, not %q", got, want)
		}
	}
}

func TestDrainTimeoutClosesClientThatNeverEnds(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{DrainTimeout: 50 * time.Millisecond}, zerolog.InfoLevel)
	conn := dial(t, srv.addr)
	wantEcho(t, conn, "before")
	srv.stop()
	srv.ended(t)
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read gives %d, %v", n, err)
	}
	srv.log.await(t, 1, "drain timeout is over")
	gone(t, srv.addr.Path)
}

func TestStopWithoutClientsIsImmediate(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{DrainTimeout: time.Hour}, zerolog.InfoLevel)
	srv.log.await(t, 1, "waiting for a connection")
	srv.stop()
	srv.ended(t)
}

func TestMaxConnectionsRejectsFurtherClients(t *testing.T) {
	t.Parallel()
	counts := new(server.Stats)
	srv := serve(t, config{MaxConnections: 2, Stats: counts}, zerolog.InfoLevel)
	first, second := dial(t, srv.addr), dial(t, srv.addr)
	wantEcho(t, first, "first")
	wantEcho(t, second, "second")

	if n, err := dial(t, srv.addr).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a third client reads %d, %v", n, err)
	}
	srv.log.await(t, 1, "rejected a client: connection limit (2) reached")

	check(t, first.Close())
	testkit.Await(t, func() error { // its place is free a moment after the log has its end
		if n := counts.Connections.Load(); n != 1 {
			return fmt.Errorf("%d connections are open", n)
		}
		return nil
	})
	wantEcho(t, dial(t, srv.addr), "third")
	wantEcho(t, second, "second")
}

// A server that ends by itself just when it is told to stop may have ended
// before it reads that. The word must not be written to another file that has
// its descriptor's number by then.
//
// Not parallel: no other test may use the descriptor numbers.
func TestLateStopWritesToNoOtherDescriptor(t *testing.T) {
	for range 100 {
		socket := listenOn(t, addr.Datagram)
		client := correspond(t, socket.Addr)
		client.send(t, "wake up") // so that the loop does not wait for the word
		ctx, stop := context.WithCancel(t.Context())
		stop()
		check(t, (config{Log: zerolog.Nop(), DrainTimeout: patience}).Serve(ctx, socket))
		var counters []int
		for range 4 {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			check(t, err)
			counters = append(counters, fd)
		}
		if got := client.receive(t); got != "wake up" {
			t.Fatalf("received %q", got)
		}
		runtime.Gosched()
		for _, fd := range counters {
			if n, err := unix.Read(fd, make([]byte, 8)); err != unix.EAGAIN {
				t.Fatalf("it was written to: %d, %v", n, err)
			}
			check(t, unix.Close(fd))
		}
		check(t, client.Close())
	}
}

// Serve does not change its caller's Config.
func TestTwoServeByOneServer(t *testing.T) {
	t.Parallel()
	s := &config{Chunk: 16, Log: zerolog.Nop()}
	ctx, stop := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	sockets := []*addr.Socket{listen(t), listen(t)}
	for _, socket := range sockets {
		serving.Go(func() {
			if err := s.Serve(ctx, socket); err != nil {
				t.Error(err)
			}
		})
	}
	for _, socket := range sockets {
		wantEcho(t, dial(t, socket.Addr), message)
	}
	stop()
	serving.Wait()
	if s.Stats != nil {
		t.Error("Serve has set the caller's Stats")
	}
}
