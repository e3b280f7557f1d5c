package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo/echotest"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// kept is how many replies the server keeps for a client that is behind.
const kept = 1024

func TestSenderWithoutANameIsLoggedRarelyAndHarmsNoOtherClient(t *testing.T) {
	t.Parallel()
	const warning = "cannot reply to a client without a name; it must bind one"
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.WarnLevel)
	nameless, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: srv.Addr.Path, Net: "unixgram"})
	check(t, err)
	defer func() { check(t, nameless.Close()) }()
	check(t, nameless.SetDeadline(time.Now().Add(patience)))
	began := time.Now()
	for range 1000 {
		_, err := nameless.Write([]byte(message))
		check(t, err)
	}
	// The server answers it in turn.
	wantBack(t, dial(t, srv.Addr), sock.NewReceiver(100), message)
	seconds := int(time.Since(began)/time.Second) + 1
	srv.Log.Await(t, 1, warning)
	messages := srv.Log.Messages()
	for _, m := range messages {
		if m != warning {
			t.Errorf("the server warns of %q", m)
		}
	}
	if n := len(messages); n > 5*seconds {
		t.Errorf("1000 messages in %d s are logged %d times", seconds, n)
	}
}

func TestF28DatagramClientThatNeverReadsStopsNoOtherClient(t *testing.T) {
	t.Parallel()
	stats := new(server.Stats)
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{Stats: stats}, zerolog.WarnLevel)
	lazy := correspond(t, srv.Addr)
	sent := 0
	for range queueLength(t) + kept + 1 {
		lazy.Send(t, message)
		sent++
	}
	// The flooding client continues to send, too.
	over := make(chan struct{})
	var clients, flood sync.WaitGroup
	flood.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			if _, err := lazy.WriteTo([]byte(message), lazy.Server); err != nil {
				t.Errorf("the client that never reads: %v", err)
				return
			}
			sent++
		}
	})
	const others, each = 50, 100
	for i := range others {
		conn := dial(t, srv.Addr)
		clients.Go(func() {
			r := sock.NewReceiver(100)
			for n := range each {
				sent := fmt.Sprintf("client %d, message %d", i, n)
				if err := conn.Send([]byte(sent)); err != nil {
					t.Errorf("%s: %v", sent, err)
					return
				}
				if back, err := conn.Receive(r); err != nil || string(back) != sent {
					t.Errorf("%s: received %q, %v", sent, back, err)
					return
				}
			}
		})
	}
	clients.Wait()
	close(over)
	flood.Wait()
	srv.Log.Await(t, 1, "dropped replies to a client: it does not read its replies")
	// This message comes after the whole flood.
	wantBack(t, dial(t, srv.Addr), sock.NewReceiver(100), message)
	dropped := int(stats.Dropped.Load())
	if least := sent - queueLength(t) - kept; dropped < least || dropped > sent {
		t.Errorf("%d replies are dropped of %d, not %d", dropped, sent, least)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F28", Done: fmt.Sprintf("a client that sends on and never reads, beside %d others of %d messages", others, each), Count: others * each,
		Outcome: fmt.Sprintf("every message of the others echoed; of %d replies to the flood %d dropped, each counted", sent, dropped),
	})
}

func TestConnectedDatagramClientThatNeverReadsStopsNoOtherClient(t *testing.T) {
	t.Parallel()
	for name, flood := range map[string]struct{ count, size int }{
		"as the client program may": {1000, 1024},
		"many small ones":           {30_000, 10},
		"large ones":                {50, 200_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.ErrorLevel)
			lazy := dial(t, srv.Addr)
			for range flood.count {
				check(t, lazy.Send(make([]byte, flood.size)))
			}
			r := sock.NewReceiver(100)
			for range 50 {
				wantBack(t, dial(t, srv.Addr), r, message)
			}
		})
	}
}

func TestDatagramClientThatIsBehindGetsAllInOrder(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.InfoLevel)
	client := correspond(t, srv.Addr)
	client.Send(t, message) // the server knows its owner from then on
	if got := client.Receive(t); got != message {
		t.Fatalf("received %q", got)
	}
	total := queueLength(t) + kept
	for range 2 { // it can fall behind again
		var want []string
		for i := range total {
			// Messages of several sizes, none of which may be lost either.
			want = append(want, fmt.Sprintf("%0*d", i%100, i))
			client.Send(t, want[i])
		}
		for i := range total {
			if got := client.Receive(t); got != want[i] {
				t.Fatalf("reply %d is %q, not %q", i, got, want[i])
			}
		}
	}
	if n := strings.Count(strings.Join(srv.Log.Messages(), "\n"), "sending data back"); n != 1+2*total {
		t.Errorf("%d replies are logged, not %d", n, 1+2*total)
	}
	for _, e := range srv.Log.All() {
		if e.Level != "info" {
			t.Errorf("an event that should not be: %+v", e)
		}
	}
}

func TestMoreThanIsKeptForAClientIsDroppedAndCounted(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.InfoLevel)
	client := correspond(t, srv.Addr)
	total := queueLength(t) + kept
	const more = 3 // the log has room for all of them
	for i := range total + more {
		client.Send(t, strconv.Itoa(i))
	}
	srv.Log.Await(t, more, "dropped replies to a client: it does not read its replies")
	var dropped []uint64
	for _, e := range srv.Log.All() {
		if e.Level == "warn" {
			dropped = append(dropped, e.Dropped)
			if e.Peer != client.LocalAddr().String() {
				t.Errorf("the client is %q, not %s", e.Peer, client.LocalAddr())
			}
		}
	}
	if diff := cmp.Diff([]uint64{1, 2, 3}, dropped); diff != "" {
		t.Errorf("dropped (-want +got):\n%s", diff)
	}
	for i := range total {
		if got := client.Receive(t); got != strconv.Itoa(i) {
			t.Fatalf("reply %d is %q", i, got)
		}
	}
	client.Send(t, "and on it goes")
	if got := client.Receive(t); got != "and on it goes" {
		t.Errorf("then came %q", got)
	}
}

func TestDatagramClientThatEndsDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.WarnLevel)
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	defer func() { check(t, os.RemoveAll(d)) }()
	client, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/client", Net: "unixgram"})
	check(t, err)
	behind := &echotest.Correspondent{UnixConn: client, Server: &net.UnixAddr{Name: srv.Addr.Path, Net: "unixgram"}}
	for range queueLength(t) + 5 {
		behind.Send(t, message)
	}
	// The server answers it in turn, so the others' replies are waiting by
	// now.
	r := sock.NewReceiver(100)
	wantBack(t, dial(t, srv.Addr), r, message)
	check(t, client.Close())
	srv.Log.Await(t, 1, "dropped replies to a client: connection refused")
	if e := srv.Log.All()[0]; e.Dropped != 5 || e.Peer != d+"/client" {
		t.Errorf("event is %+v", e)
	}
	wantBack(t, dial(t, srv.Addr), r, message)
}

func TestDatagramWithDescriptorsIsRefusedAndTheNextAnswered(t *testing.T) {
	t.Parallel()
	for _, level := range []zerolog.Level{zerolog.InfoLevel, zerolog.WarnLevel} {
		srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, level)
		client := correspond(t, srv.Addr)
		echotest.SendDescriptor(t, client.UnixConn, client.Server)
		client.Send(t, "next")
		if got := client.Receive(t); got != "next" {
			t.Errorf("received %q", got)
		}
		srv.Log.Await(t, 1, "dropped a message: message carries file descriptors")
	}
}

func TestDrainAnswersDatagramsReceivedBefore(t *testing.T) {
	t.Parallel()
	socket := listenOn(t, addr.Datagram)
	client := correspond(t, socket.Addr)
	n := queueLength(t)
	for i := range n {
		client.Send(t, strconv.Itoa(i))
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	srv := config{DrainTimeout: patience, Log: zerolog.Nop()}
	check(t, srv.Serve(ctx, socket))
	for i := range n {
		if got := client.Receive(t); got != strconv.Itoa(i) {
			t.Fatalf("reply %d is %q", i, got)
		}
	}
	_, err := client.WriteTo([]byte("late"), client.Server)
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a late client gets %v", err)
	}
}

func TestDrainAnswersDatagramClientThatIsBehind(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{DrainTimeout: patience}, zerolog.DebugLevel)
	client, connected := correspond(t, srv.Addr), dial(t, srv.Addr)
	total := queueLength(t) + 100
	for i := range total {
		client.Send(t, strconv.Itoa(i))
	}
	srv.Stop()
	srv.Log.Await(t, 1, "draining")
	for i := range total {
		if got := client.Receive(t); got != strconv.Itoa(i) {
			t.Fatalf("reply %d is %q", i, got)
		}
	}
	srv.Ended(t)
	gone(t, srv.Addr.Path)
	gone(t, beside(srv.Addr.Path, ".lock"))
	if err := connected.Send(nil); !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("a client that sends too late gets %v", err)
	}
}

func TestDrainTimeoutEndsTheWaitForDatagramClients(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{DrainTimeout: 50 * time.Millisecond}, zerolog.WarnLevel)
	client := correspond(t, srv.Addr)
	for range queueLength(t) + 5 {
		client.Send(t, message)
	}
	srv.Stop()
	srv.Ended(t)
	srv.Log.Await(t, 1, "drain timeout is over")
	gone(t, srv.Addr.Path)
}

// A flood sends one more message for each that the server logs: as many as
// arrive while it receives, however fast it is. The server is stopped in the
// middle.
type flood struct {
	net.Conn
	stop context.CancelFunc
	n    int
}

func (f *flood) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("received")) {
		if f.n++; f.n == 100 {
			f.stop()
		}
		_, _ = f.Conn.Write([]byte("flood"))
	}
	return len(line), nil
}

func TestF44DatagramFloodWhileDraining(t *testing.T) {
	t.Parallel()
	socket := listenOn(t, addr.Datagram)
	conn, err := net.Dial("unixgram", socket.Addr.Path)
	check(t, err)
	defer func() { check(t, conn.Close()) }()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	ctx, stop := context.WithCancel(t.Context())
	endless := &flood{Conn: conn, stop: stop}
	_, err = conn.Write([]byte("flood"))
	check(t, err)
	srv := config{DrainTimeout: 2 * patience, Log: zerolog.New(endless)}
	check(t, srv.Serve(ctx, socket))
	if _, err := conn.Write([]byte("flood")); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the end, sending fails with %v", err)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F44", Done: "a datagram server that is to stop gets another message for each that it receives, without an end", Count: 1,
		Outcome: fmt.Sprintf("it ended after %d messages: the kernel takes no more once it drains", endless.n),
	})
}
