package testkit_test

import (
	"io"
	"net"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// arrived returns how many bytes of each connection reach the server.
func arrived(t *testing.T, network string, seed uint64) (counts []int64) {
	t.Helper()
	d := testkit.Dir(t)
	l, err := net.Listen(network, d+"/server")
	testkit.Check(t, err)
	defer func() { testkit.Check(t, l.Close()) }()
	testkit.StartProxy(t, seed, network, d+"/line", d+"/server", 64<<10)
	for range 10 {
		client, err := net.Dial(network, d+"/line")
		testkit.Check(t, err)
		conn, err := l.Accept()
		testkit.Check(t, err)
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
		testkit.Check(t, err)
		counts = append(counts, n)
		_ = client.Close()
		<-written
		_ = conn.Close()
	}
	return counts
}

func TestSeedDeterminesWhereConnectionsBreak(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			seed := testkit.Seed(t)
			first, again, other := arrived(t, network, seed), arrived(t, network, seed), arrived(t, network, seed+1)
			if !slices.Equal(first, again) {
				t.Errorf("with one seed they break after %v and after %v", first, again)
			}
			if slices.Equal(first, other) {
				t.Errorf("with two seeds they break after %v", first)
			}
		})
	}
}
