package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/bench"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server for all types until the test has ended.
func serve(t testing.TB) (addrs []addr.Addr) {
	t.Helper()
	dir := testkit.Dir(t)
	for _, kind := range []addr.Type{addr.Stream, addr.Seqpacket, addr.Datagram} {
		addrs = append(addrs, addr.Addr{Type: kind, Path: filepath.Join(dir, string(kind))})
	}
	addrs = append(addrs, addr.Addr{Type: addr.TCP, Path: freePort(t)})
	var sockets []*addr.Socket
	for _, a := range addrs {
		s, err := addr.Listen(sock.ListenConfig{}, a)
		testkit.Check(t, err)
		sockets = append(sockets, s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	s, err := server.New(server.Config{Spin: 100 * time.Microsecond, Log: zerolog.Nop()})
	testkit.Check(t, err)
	h := echo.New(s, echo.Config{Chunk: 64 << 10})
	go func() { done <- s.Serve(ctx, server.Services(h, sockets...)...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return addrs
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Check(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func dial(ctx context.Context, a addr.Addr) (*sock.Conn, error) {
	var config sock.DialConfig
	if a.Type == addr.Datagram {
		config.Bind = sock.AutoName(filepath.Dir(a.Path))
	}
	return addr.Dial(ctx, a, config)
}

func config(addrs ...addr.Addr) bench.Config {
	return bench.Config{
		Addrs: addrs, Dial: dial, Sizes: []int{64}, Connections: []int{1}, Window: 1, Baseline: 1,
		Duration: testkit.Patience / 1000, Warmup: 10 * time.Millisecond, Rounds: 2, Spin: 100 * time.Microsecond,
	}
}

func TestMeasuresEveryCombinationAndLosesNothing(t *testing.T) {
	c := config(serve(t)...)
	c.Sizes, c.Connections, c.Window = []int{1, 64, 100_000}, []int{1, 20}, 3
	result, err := c.Run(t.Context())
	testkit.Check(t, err)
	if want := len(c.Addrs) * len(c.Sizes) * len(c.Connections); len(result.Rows) != want {
		t.Fatalf("%d rows, want %d", len(result.Rows), want)
	}
	for _, row := range result.Rows {
		if row.Errors != 0 || row.Rate <= 0 || row.P50 <= 0 || row.P99 < row.P50 || row.Max < row.P999 || len(row.Rates) != c.Rounds {
			t.Errorf("%+v", row)
		}
		if row.Address == c.Addrs[0].String() && (row.Ratio != 1 || row.RatioMin != 1 || row.RatioMax != 1) {
			t.Errorf("the baseline's ratio to itself: %+v", row)
		}
	}
}

func TestOpenLoopKeepsItsRate(t *testing.T) {
	c := config(serve(t)[0])
	c.Rate, c.Connections, c.Duration, c.Window = 2000, []int{4}, 500*time.Millisecond, 100
	result, err := c.Run(t.Context())
	testkit.Check(t, err)
	// Never faster, even with a fast server; how much slower depends on the
	// machine.
	if row := result.Rows[0]; row.Rate > 2100 || row.Errors != 0 {
		t.Errorf("%+v", row)
	}
}

// An open loop against a server that stalls: the messages that should have
// been sent meanwhile have waited, and the latencies must include that wait
// (coordinated omission).
func TestOpenLoopCountsTheWaitBeforeSending(t *testing.T) {
	const stall = 300 * time.Millisecond
	a := serveWith(t, func(conn net.Conn) {
		buf := make([]byte, 64)
		for i := 0; ; i++ {
			if _, err := io.ReadFull(conn, buf); err != nil {
				return
			}
			if i == 20 {
				time.Sleep(stall) // the fault itself
			}
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	})
	c := config(a)
	c.Rate, c.Duration, c.Warmup, c.Rounds = 200, time.Second, 0, 1
	result, err := c.Run(t.Context())
	testkit.Check(t, err)
	// 200 messages in all; the stall delayed about 60 of them.
	if row := result.Rows[0]; row.P99 < int64(stall/2) {
		t.Errorf("p99 %v with a stall of %v for a third of the messages", time.Duration(row.P99), stall)
	}
}

func TestServerThatAltersAByteIsAnError(t *testing.T) {
	a := serveWith(t, func(conn net.Conn) {
		buf := make([]byte, 64)
		for i := 0; ; i++ {
			if _, err := io.ReadFull(conn, buf); err != nil {
				return
			}
			if i == 5 {
				buf[40] ^= 1
			}
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	})
	c := config(a)
	c.Duration = testkit.Patience / 200 // for six messages
	result, err := c.Run(t.Context())
	testkit.Check(t, err)
	if result.Rows[0].Errors == 0 {
		t.Errorf("no error: %+v", result.Rows[0])
	}
}

func TestUnreachableServerIsNamed(t *testing.T) {
	_, err := config(addr.Addr{Type: addr.Stream, Path: "/nowhere/s"}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "stream:/nowhere/s") {
		t.Errorf("%v", err)
	}
}

func TestTableAndJSONHoldTheSameNumbers(t *testing.T) {
	result, err := config(serve(t)...).Run(t.Context())
	testkit.Check(t, err)
	var table, text bytes.Buffer
	testkit.Check(t, result.WriteTable(&table))
	testkit.Check(t, result.WriteJSON(&text))
	var back bench.Result
	testkit.Check(t, json.Unmarshal(text.Bytes(), &back))
	var again bytes.Buffer
	testkit.Check(t, back.WriteTable(&again))
	if d := cmp.Diff(table.String(), again.String()); d != "" {
		t.Errorf("table (-measured +from JSON):\n%s", d)
	}
}

// serveWith runs the test's own server for one connection.
func serveWith(t *testing.T, echo func(net.Conn)) addr.Addr {
	t.Helper()
	a := addr.Addr{Type: addr.Stream, Path: filepath.Join(testkit.Dir(t), "s")}
	l, err := net.Listen("unix", a.Path)
	testkit.Check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			echo(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return a
}

// Both ends are in this process, so this counts the server's allocations and
// the client's together. It allows for the allocations at the start and the
// end of a measurement.
func TestNeitherEndAllocatesForAnEcho(t *testing.T) {
	for _, a := range serve(t)[:3] {
		c := config(a)
		c.Rounds, c.Duration = 1, 300*time.Millisecond
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		result, err := c.Run(t.Context())
		testkit.Check(t, err)
		runtime.ReadMemStats(&after)
		messages := result.Rows[0].Rate * c.Duration.Seconds()
		const begin = 2000
		if allocs := float64(after.Mallocs - before.Mallocs); allocs > begin+messages/10 {
			t.Errorf("%s: %.0f allocations for %.0f messages", a, allocs, messages)
		}
	}
}

// BenchmarkLoad measures both sides of an echo, client and server. Neither
// allocates.
func BenchmarkLoad(b *testing.B) {
	for _, a := range serve(b)[:3] {
		b.Run(string(a.Type), func(b *testing.B) {
			b.ReportAllocs()
			c := config(a)
			c.Rounds = 1
			messages := 0.0
			for b.Loop() {
				result, err := c.Run(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				messages += result.Rows[0].Rate * c.Duration.Seconds()
			}
			b.ReportMetric(messages/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
