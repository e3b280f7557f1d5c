package bench_test

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
)

// BenchmarkUDPLoses counts what an echo over UDP loses, for the table in
// docs/learn.md: a million messages of 4 clients, with 256 in flight for each,
// on loopback, while the echo stands still 5 times.
func BenchmarkUDPLoses(b *testing.B) {
	for b.Loop() {
		server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		testkit.Check(b, err)
		var echo, clients sync.WaitGroup
		echo.Go(func() {
			buf := make([]byte, 8)
			for n := 1; ; n++ {
				size, client, err := server.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if n%100_000 == 0 && n <= 500_000 {
					time.Sleep(200 * time.Millisecond) // the fault itself
				}
				_, _ = server.WriteToUDPAddrPort(buf[:size], client)
			}
		})
		var lost, wrong atomic.Int64
		for range 4 {
			clients.Go(func() { countOverUDP(b, server.LocalAddr().(*net.UDPAddr), 250_000, &lost, &wrong) })
		}
		clients.Wait()
		testkit.Check(b, server.Close())
		echo.Wait()
		b.ReportMetric(float64(lost.Load()), "lost")
		b.ReportMetric(float64(wrong.Load()), "out-of-order-or-twice")
	}
}

// countOverUDP sends the numbers up to n, 256 at a time. A number without an
// echo for a second is lost.
func countOverUDP(b *testing.B, server *net.UDPAddr, n int, lost, wrong *atomic.Int64) {
	conn, err := net.DialUDP("udp4", nil, server)
	if err != nil {
		b.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	seen, last, buf := make([]bool, n), -1, make([]byte, 8)
	lost.Add(int64(n))
	for next := 0; next < n; {
		due := min(256, n-next)
		for range due {
			_, _ = conn.Write(binary.BigEndian.AppendUint64(buf[:0], uint64(next)))
			next++
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		for range due {
			if _, err := conn.Read(buf); err != nil {
				break
			}
			i := int(binary.BigEndian.Uint64(buf))
			if i < last || seen[i] {
				wrong.Add(1)
			}
			if !seen[i] {
				lost.Add(-1)
			}
			seen[i], last = true, max(last, i)
		}
	}
}
