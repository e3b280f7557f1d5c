package proxy_test

import (
	"io"
	"net"
	"os"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/udsecho/udsecho/internal/proxy"
	"github.com/udsecho/udsecho/internal/uds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// arrived tells how many bytes of each of some connections reach the server.
func arrived(t *testing.T, typ uds.Type, seed uint64) (counts []int64) {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
	server := uds.Addr{Type: typ, Path: d + "/server"}
	line := uds.Addr{Type: typ, Path: d + "/line"}
	l, err := net.Listen(server.Network(), server.Path)
	check(t, err)
	defer func() { check(t, l.Close()) }()
	proxy.Start(t, seed, line, server, 64<<10)
	for range 10 {
		client, err := net.Dial(line.Network(), line.Path)
		check(t, err)
		conn, err := l.Accept()
		check(t, err)
		written := make(chan struct{})
		go func() {
			defer close(written)
			for part := make([]byte, 1000); ; {
				if _, err := client.Write(part); err != nil {
					return
				}
			}
		}()
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, make([]byte, 4096))
		check(t, err)
		counts = append(counts, n)
		_ = client.Close()
		<-written
		_ = conn.Close()
	}
	return counts
}

func TestSeedSaysWhereConnectionsBreak(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			seed := proxy.Seed(t)
			first, again, other := arrived(t, typ, seed), arrived(t, typ, seed), arrived(t, typ, seed+1)
			if !slices.Equal(first, again) {
				t.Errorf("with one seed they break after %v and after %v", first, again)
			}
			if slices.Equal(first, other) {
				t.Errorf("with two seeds they break after %v", first)
			}
		})
	}
}
