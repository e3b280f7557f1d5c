package server_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// connecting are the types that have connections.

// refusals returns the refusals that stats count.
func refusals(counted *server.Stats) map[string]uint64 {
	got := map[string]uint64{}
	for cause := range server.Causes {
		if n := counted.Refused(cause); n > 0 {
			got[cause.String()] = n
		}
	}
	return got
}

func wantRefused(t *testing.T, stats *server.Stats, cause string, n uint64) {
	t.Helper()
	if got := refusals(stats); got[cause] != n || len(got) != 1 {
		t.Errorf("refused are %v, not %s: %d", got, cause, n)
	}
}

// wantEnd reads until the server has closed the connection.
func wantEnd(t *testing.T, conn *sock.Conn) {
	t.Helper()
	for buf := make([]byte, 1<<20); ; {
		switch n, err := conn.Read(buf); {
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			return
		case err != nil:
			t.Fatalf("read gives %d, %v", n, err)
		case n == 0:
			return
		}
	}
}

func TestOnlyIdleClientsAreDisconnected(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			timeout := testkit.Unhurried // the honest client's process may be without a CPU for long
			stats := new(server.Stats)
			srv := serveSocket(t, listenOn(t, typ), config{Chunk: 100, IdleTimeout: timeout, Stats: stats}, zerolog.InfoLevel)
			began := time.Now()
			idle, honest := dial(t, srv.Addr), dial(t, srv.Addr)
			over := make(chan struct{})
			go func() {
				defer close(over)
				wantEnd(t, idle)
			}()
			r := sock.NewReceiver(100)
			for served := true; served; {
				wantBack(t, honest, r, message)
				select {
				case <-over:
					served = false
				default:
				}
			}
			// The server is never too early, however late in a second the
			// client connected.
			if after := time.Since(began); after < timeout {
				t.Errorf("disconnected after %v", after)
			}
			srv.Log.Await(t, 1, "disconnected a client: it has sent nothing for "+timeout.String())
			wantBack(t, honest, r, message)
			wantRefused(t, stats, "idle", 1)
			if n := stats.Connections.Load(); n != 1 {
				t.Errorf("%d connections are open", n)
			}
		})
	}
}

// A client gets its full time, wherever it connects between two sweeps of the
// server.
func TestIdleTimeIsNeverShort(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	srv := serve(t, config{IdleTimeout: timeout}, zerolog.Disabled)
	wantEcho(t, dial(t, srv.Addr), "ready")
	apart := time.NewTicker(150 * time.Millisecond)
	defer apart.Stop()
	var clients sync.WaitGroup
	for range 8 {
		<-apart.C
		conn, began := dial(t, srv.Addr), time.Now()
		clients.Go(func() {
			_, err := conn.Read(make([]byte, 1))
			if after := time.Since(began); after < timeout || !errors.Is(err, io.EOF) {
				t.Errorf("disconnected after %v: %v", after, err)
			}
		})
	}
	clients.Wait()
}

// fill sends on conn until the server accepts no more, and reads nothing.
func fill(t *testing.T, conn *sock.Conn, size int) {
	t.Helper()
	check(t, conn.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
	for {
		if err := conn.Send(make([]byte, size)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			return
		}
	}
}

func TestClientsThatDoNotReadAreDisconnected(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			stats := new(server.Stats)
			srv := serveSocket(t, listenOn(t, typ), config{Chunk: 4096, WriteTimeout: time.Second, Stats: stats}, zerolog.WarnLevel)
			lazy, idle := dial(t, srv.Addr), dial(t, srv.Addr)
			fill(t, lazy, 4096)
			srv.Log.Await(t, 1, "disconnected a client: it has not read for 1s")
			wantEnd(t, lazy)
			wantBack(t, idle, sock.NewReceiver(100), message) // no idle timeout is set
			wantRefused(t, stats, "unread", 1)
		})
	}
}

// The kernel reports that more can be sent only when three quarters of the
// send buffer are free. A client that reads slowly needs a long time for that.
func TestClientThatReadsSlowlyIsNotDisconnected(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			timeout := testkit.Unhurried
			stats := new(server.Stats)
			srv := serveSocket(t, listenOn(t, typ), config{Chunk: 2048, WriteTimeout: timeout, Stats: stats}, zerolog.WarnLevel)
			slow := dial(t, srv.Addr)
			fill(t, slow, 2048)
			again := time.NewTicker(timeout / 10)
			defer again.Stop()
			buf := make([]byte, 2048)
			for range 30 {
				<-again.C
				if _, err := io.ReadFull(slow, buf); err != nil {
					t.Fatal(err)
				}
			}
			if got := refusals(stats); len(got) > 0 {
				t.Errorf("refused are %v: %q", got, srv.Log.Messages())
			}
		})
	}
}

func TestMaxConnectionsPerUserLeavesRoomForOthersAndIsFreeAgain(t *testing.T) {
	t.Parallel()
	for _, typ := range connecting {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			stats := new(server.Stats)
			srv := serveSocket(t, listenOn(t, typ), config{Chunk: 100, MaxConnections: 10, MaxConnectionsPerUser: 3, Stats: stats}, zerolog.WarnLevel)
			r := sock.NewReceiver(100)
			for round := range uint64(3) {
				var conns []*sock.Conn
				for range 3 {
					conn := dial(t, srv.Addr)
					wantBack(t, conn, r, message)
					conns = append(conns, conn)
				}
				wantEnd(t, dial(t, srv.Addr))
				wantRefused(t, stats, "user_connections", round+1)
				for _, conn := range conns {
					check(t, conn.Close())
				}
				for late := time.Now().Add(patience); stats.Connections.Load() > 0; time.Sleep(time.Millisecond) {
					if time.Now().After(late) {
						t.Fatalf("%d connections stay open", stats.Connections.Load())
					}
				}
			}
			srv.Log.Await(t, 3, "rejected a client: connection limit per user (3) reached")
		})
	}
}

func TestAllRefusalsAreCountedAndFewAreLogged(t *testing.T) {
	t.Parallel()
	stats := new(server.Stats)
	srv := serve(t, config{MaxConnections: 1, Stats: stats}, zerolog.InfoLevel)
	first := dial(t, srv.Addr)
	wantEcho(t, first, message)
	began := time.Now()
	n := testkit.Count[uint64](200, 2000)
	for range n {
		conn := dial(t, srv.Addr)
		wantEnd(t, conn)
		check(t, conn.Close())
	}
	seconds := int(time.Since(began)/time.Second) + 1
	wantRefused(t, stats, "connections", n)
	told := strings.Count(strings.Join(srv.Log.Messages(), "\n"), "rejected a client")
	if told < 1 || told > 5*seconds {
		t.Errorf("%d refusals in %d s are logged %d times", n, seconds, told)
	}
	for _, e := range srv.Log.All() {
		if strings.HasPrefix(e.Message, "rejected") && (e.Level != "warn" || e.Refused == 0 || e.Refused > n) {
			t.Errorf("%+v", fmt.Sprint(e))
		}
	}
}
