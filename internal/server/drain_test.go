package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestServesSeveralSockets(t *testing.T) {
	t.Parallel()
	a, b := listen(t), listen(t)
	journal := newJournal()
	srv := config{Chunk: 16, Log: journal.Logger(zerolog.InfoLevel)}
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
	}, journal.Messages()[:3]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDrainLetsRunningEchoesEnd(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{DrainTimeout: patience}, zerolog.DebugLevel)
	conn := dial(t, srv.Addr)
	wantEcho(t, conn, "before")
	srv.Stop()
	srv.Log.Await(t, 1, "draining")

	wantEcho(t, conn, "after")
	check(t, conn.CloseWrite())
	rest, err := io.ReadAll(conn)
	if err != nil || len(rest) > 0 {
		t.Errorf("at the end came %q, %v", rest, err)
	}
	srv.Ended(t)
	gone(t, srv.Addr.Path)
	gone(t, beside(srv.Addr.Path, ".lock"))
	_, err = addr.Dial(t.Context(), srv.Addr, sock.DialConfig{})
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
	conn := dial(t, srv.Addr)
	wantEcho(t, conn, "before")
	srv.Stop()
	srv.Ended(t)
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read gives %d, %v", n, err)
	}
	srv.Log.Await(t, 1, "drain timeout is over")
	gone(t, srv.Addr.Path)
}

func TestStopWithoutClientsIsImmediate(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{DrainTimeout: time.Hour}, zerolog.InfoLevel)
	srv.Log.Await(t, 1, "waiting for a connection")
	srv.Stop()
	srv.Ended(t)
}

func TestMaxConnectionsRejectsFurtherClients(t *testing.T) {
	t.Parallel()
	counts := new(server.Stats)
	srv := serve(t, config{MaxConnections: 2, Stats: counts}, zerolog.InfoLevel)
	first, second := dial(t, srv.Addr), dial(t, srv.Addr)
	wantEcho(t, first, "first")
	wantEcho(t, second, "second")

	if n, err := dial(t, srv.Addr).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a third client reads %d, %v", n, err)
	}
	srv.Log.Await(t, 1, "rejected a client: connection limit (2) reached")

	check(t, first.Close())
	testkit.Await(t, func() error { // its place is free a moment after the log has its end
		if n := counts.Connections.Load(); n != 1 {
			return fmt.Errorf("%d connections are open", n)
		}
		return nil
	})
	wantEcho(t, dial(t, srv.Addr), "third")
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
		client.Send(t, "wake up") // so that the loop does not wait for the word
		ctx, stop := context.WithCancel(t.Context())
		stop()
		check(t, (config{Log: zerolog.Nop(), DrainTimeout: patience}).Serve(ctx, socket))
		var counters []int
		for range 4 {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			check(t, err)
			counters = append(counters, fd)
		}
		if got := client.Receive(t); got != "wake up" {
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
