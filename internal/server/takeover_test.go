package server_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// A generation is a server that takes over from the one before it.
type generation struct {
	Log  *journal
	Stop context.CancelFunc
	Done chan error
}

// generate starts a generation on all of addrs. It listens in the background,
// because the running server has to answer.
func generate(t testing.TB, s config, addrs ...addr.Addr) *generation {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	g := &generation{newJournal(), stop, make(chan error, 1)}
	s.Log, s.Chunk = g.Log.Logger(zerolog.DebugLevel), 16
	if s.DrainTimeout == 0 {
		s.DrainTimeout = patience
	}
	go func() {
		sockets, h, err := addr.Handover(sock.ListenConfig{Mode: 0o666}, addrs...)
		if err != nil {
			g.Done <- err
			return
		}
		s.Handover = h
		g.Done <- s.Serve(ctx, sockets...)
	}()
	t.Cleanup(func() { stop(); _ = g.end(t) })
	return g
}

func (g *generation) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-g.Done:
		g.Done <- err
		return err
	case <-time.After(patience):
		t.Fatalf("the server does not end; its log is %q", g.Log.Messages())
		return nil
	}
}

// places returns addresses of the three types in a directory, which must be
// empty at the end.
func places(t testing.TB) []addr.Addr {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() {
		if err := os.Remove(d); err != nil {
			t.Errorf("something is left behind: %v", err)
		}
	})
	return []addr.Addr{{Type: addr.Stream, Path: d + "/s"}, {Type: addr.Datagram, Path: d + "/d"}, {Type: addr.Seqpacket, Path: d + "/q"}}
}

func wantEchoOf(t testing.TB, a addr.Addr) {
	t.Helper()
	conn := dial(t, a)
	if a.Type == addr.Stream {
		wantEcho(t, conn, message)
	} else {
		wantBack(t, conn, sock.NewReceiver(100), message)
	}
	check(t, conn.Close())
}

func TestTakeoverServesOldClientsToTheEndAndNewOnesAtOnce(t *testing.T) {
	t.Parallel()
	addrs := places(t)
	old := generate(t, config{}, addrs...)
	old.Log.Await(t, 1, "waiting for a connection")
	stream, record := dial(t, addrs[0]), dial(t, addrs[2])
	wantEcho(t, stream, message)
	wantBack(t, record, sock.NewReceiver(100), message)

	next := generate(t, config{}, addrs...)
	next.Log.Await(t, 3, "took over ")
	old.Log.Await(t, 3, "handing over ")
	for _, a := range addrs {
		wantEchoOf(t, a)
	}
	wantEcho(t, stream, "still there")
	wantBack(t, record, sock.NewReceiver(100), "still there")
	check(t, stream.Close())
	check(t, record.Close())
	check(t, old.end(t))

	next.Stop()
	check(t, next.end(t))
}

func TestHandedOverServerEndsAtTheDrainTimeout(t *testing.T) {
	t.Parallel()
	addr := places(t)[0]
	old := generate(t, config{DrainTimeout: 50 * time.Millisecond}, addr)
	old.Log.Await(t, 1, "waiting for a connection")
	idle := dial(t, addr)
	wantEcho(t, idle, message)
	next := generate(t, config{}, addr)
	next.Log.Await(t, 1, "took over ")
	check(t, old.end(t))
	old.Log.Await(t, 1, "drain timeout is over: closing all connections")
	wantEchoOf(t, addr)
}

// The replies that wait for a client in the old server come before those of
// the new server.
func TestTakeoverKeepsTheOrderOfDatagrams(t *testing.T) {
	t.Parallel()
	addr := places(t)[1]
	old := generate(t, config{}, addr)
	old.Log.Await(t, 1, "waiting for a message")
	client := correspond(t, addr)
	const early, all = 100, 300
	for i := range early {
		client.Send(t, fmt.Sprint(i))
	}
	old.Log.Await(t, early, "sending data back to the client")

	next := generate(t, config{}, addr)
	old.Log.Await(t, 1, "handing over ")
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := early; i < all; i++ {
			if _, err := client.WriteTo([]byte(fmt.Sprint(i)), client.Server); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range all {
		if got := client.Receive(t); got != fmt.Sprint(i) {
			t.Fatalf("reply %d is %q", i, got)
		}
	}
	sending.Wait()
	check(t, old.end(t))
	next.Log.Await(t, all-early, "sending data back to the client")
}

func TestDatagramClientThatDoesNotReadHoldsNoHandoverUp(t *testing.T) {
	t.Parallel()
	addr := places(t)[1]
	old := generate(t, config{DrainTimeout: 50 * time.Millisecond}, addr)
	old.Log.Await(t, 1, "waiting for a message")
	stuck := correspond(t, addr)
	for range 2 * queueLength(t) {
		stuck.Send(t, message)
	}
	old.Log.Await(t, 2*queueLength(t), "sending data back to the client")
	generate(t, config{}, addr).Log.Await(t, 1, "took over ")
	wantEchoOf(t, addr)
	check(t, old.end(t))
	old.Log.Await(t, 1, "dropped replies to a client: it has not read for 50ms, the limit of a handover")
}

func TestOfTwoSuccessorsOneGetsAllSockets(t *testing.T) {
	t.Parallel()
	addrs := places(t)
	old := generate(t, config{}, addrs...)
	old.Log.Await(t, 1, "waiting for a connection")
	for range 10 {
		a, b := generate(t, config{}, addrs...), generate(t, config{}, addrs[2], addrs[1], addrs[0])
		check(t, old.end(t))
		// The loser failed, or had not asked yet and took over from the
		// winner.
		var loser *generation
		select {
		case err := <-a.Done:
			a.Done <- err
			loser, old = a, b
		case err := <-b.Done:
			b.Done <- err
			loser, old = b, a
		case <-time.After(patience):
			t.Fatalf("both serve: %q, %q", a.Log.Messages(), b.Log.Messages())
		}
		if err := loser.end(t); err != nil {
			wantWords(t, err, "in use")
		}
		old.Log.Await(t, 3, "took over ")
		for _, a := range addrs {
			wantEchoOf(t, a)
		}
	}
}

// ask returns a successor that has asked for sockets and not claimed them yet.
func ask(t testing.TB, addrs ...addr.Addr) ([]*addr.Socket, *sock.Handover) {
	t.Helper()
	sockets, h, err := addr.Handover(sock.ListenConfig{Mode: 0o666}, addrs...)
	check(t, err)
	t.Cleanup(h.Close)
	return sockets, h
}

// answered waits until the running server has answered a claim.
func answered(t testing.TB, h *sock.Handover) {
	t.Helper()
	if !testkit.Ready(t, h.FD(), unix.POLLIN) {
		t.Fatal("no answer")
	}
	if state, err := h.Step(); err != nil || state != sock.Claimed {
		t.Fatalf("the state is %d (%v)", state, err)
	}
}

func TestSignalDuringTheHandover(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		for _, claims := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, claimed: %v", typ, claims), func(t *testing.T) {
				t.Parallel()
				d := places(t)[0].Path
				addr := addr.Addr{Type: typ, Path: d}
				old := generate(t, config{}, addr)
				old.Log.Await(t, 1, "waiting for a ")
				sockets, next := ask(t, addr)
				old.Stop()
				old.Log.Await(t, 1, "draining")
				wantEchoOf(t, addr) // it may be claimed at any moment; until then it is served
				if !claims {
					next.Close()
					check(t, old.end(t))
					gone(t, addr.Path)
					gone(t, beside(addr.Path, ".takeover"))
					gone(t, beside(addr.Path, ".lock"))
					return
				}
				ctx, stop := context.WithCancel(t.Context())
				served := make(chan error, 1)
				srv := config{Chunk: 16, DrainTimeout: patience, Handover: next, Log: zerolog.Nop()}
				go func() { served <- srv.Serve(ctx, sockets...) }()
				check(t, old.end(t))
				wantEchoOf(t, addr)
				stop()
				check(t, <-served)
			})
		}
	}
}

// A successor may die after any step of its takeover. The old server then
// serves all types as before, even if the successor changed the sockets.
func TestServerContinuesToServeAfterItsSuccessorEnds(t *testing.T) {
	t.Parallel()
	for step := range 4 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			t.Parallel()
			addrs := places(t)
			old := generate(t, config{}, addrs...)
			old.Log.Await(t, 1, "waiting for a connection")
			conn := dial(t, addrs[0])
			wantEcho(t, conn, message)
			_, h, err := addr.Handover(sock.ListenConfig{Mode: 0o600, Backlog: 1}, addrs...)
			check(t, err)
			if step > 0 {
				h.Claim()
				if step > 1 {
					answered(t, h) // changes their mode and their backlog
				}
			}
			var waiting []*sock.Conn
			if step > 2 {
				waiting = append(waiting, dial(t, addrs[0]), dial(t, addrs[2]))
			}
			h.Close()
			for i, c := range waiting {
				_, err := c.Write([]byte("x"))
				check(t, err)
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Errorf("client %d, which had connected, gets %v", i, err)
				}
				check(t, c.Close())
			}
			for _, a := range addrs {
				wantEchoOf(t, a)
				info, err := os.Lstat(a.Path)
				check(t, err)
				if got := info.Mode().Perm(); got != 0o666 {
					t.Errorf("%s has mode %04o", a, got)
				}
			}
			wantEcho(t, conn, "still there")
			check(t, conn.Close())
			next := generate(t, config{}, addrs...)
			next.Log.Await(t, 3, "took over ")
			check(t, old.end(t))
		})
	}
}

// The successor is told to stop while the old server still sends replies.
func TestSignalToTheSuccessorDuringTheHandover(t *testing.T) {
	t.Parallel()
	addr := places(t)[1]
	old := generate(t, config{}, addr)
	old.Log.Await(t, 1, "waiting for a message")
	slow := correspond(t, addr)
	n := 2 * queueLength(t)
	for i := range n {
		slow.Send(t, fmt.Sprint(i))
	}
	old.Log.Await(t, n, "sending data back to the client")
	next := generate(t, config{}, addr)
	old.Log.Await(t, 1, "handing over ")
	slow.Send(t, fmt.Sprint(n)) // no server receives at this moment
	next.Stop()
	check(t, next.end(t))
	old.Log.Await(t, 1, "the server that was taking over has ended; continuing to serve")
	for i := range n + 1 {
		if got := slow.Receive(t); got != fmt.Sprint(i) {
			t.Errorf("reply %d is %q", i, got)
		}
	}
	wantEchoOf(t, addr)
}

func TestServerThatEndsBeforeItServesTakesNothingOver(t *testing.T) {
	t.Parallel()
	addr := places(t)[0]
	old := generate(t, config{}, addr)
	old.Log.Await(t, 1, "waiting for a connection")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	sockets, h := ask(t, addr)
	srv := config{Chunk: 16, DrainTimeout: patience, Handover: h, Log: zerolog.Nop()}
	check(t, srv.Serve(ctx, sockets...))
	wantEchoOf(t, addr)
}

func TestTakeoverUnderLoad(t *testing.T) {
	t.Parallel()
	addrs := places(t)
	last := generate(t, config{}, addrs...)
	last.Log.Await(t, 1, "waiting for a connection")
	var (
		over    = make(chan struct{})
		clients sync.WaitGroup
		mu      sync.Mutex
		served  int
	)
	for i := range 30 {
		addr := addrs[i%len(addrs)]
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					mu.Lock()
					served += n
					mu.Unlock()
					return
				default:
				}
				if err := once(t.Context(), addr, fmt.Sprintf("client %d, %d", i, n)); err != nil {
					t.Errorf("%s, %d: %v", addr, n, err)
					return
				}
			}
		})
	}
	for range 10 {
		next := generate(t, config{}, addrs...)
		check(t, last.end(t))
		next.Log.Await(t, 3, "took over ")
		last = next
	}
	close(over)
	clients.Wait()
	if served == 0 {
		t.Error("nothing was echoed")
	}
}

// once connects, gets an echo and closes.
func once(ctx context.Context, a addr.Addr, text string) error {
	config := sock.DialConfig{}
	if a.Type == addr.Datagram {
		config.Bind = sock.AutoName("@" + filepath.Base(a.Path))
	}
	conn, err := addr.Dial(ctx, a, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var out strings.Builder
	client := echo.Client{Timeout: patience, Log: zerolog.Nop()}
	if err := client.Message(ctx, conn, []byte(text), &out); err != nil {
		return err
	}
	if out.String() != text {
		return fmt.Errorf("sent %q, got back %q", text, out.String())
	}
	return nil
}
