package echo_test

import (
	"path/filepath"
	"runtime"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// A bare client costs only its system calls.
type bare struct {
	fd         int
	sent, back []byte
}

func newBare(t testing.TB, srv addr.Addr) *bare {
	t.Helper()
	return newNamed(t, srv, sock.AutoName("@"))
}

// newNamed is newBare with a name, which only datagram clients need.
func newNamed(t testing.TB, srv addr.Addr, name string) *bare {
	t.Helper()
	sotype := map[addr.Type]int{addr.Stream: unix.SOCK_STREAM, addr.Datagram: unix.SOCK_DGRAM, addr.Seqpacket: unix.SOCK_SEQPACKET}[srv.Type]
	fd, err := unix.Socket(unix.AF_UNIX, sotype|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(fd)) })
	if srv.Type == addr.Datagram {
		check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: name}))
		if name[0] != '@' {
			t.Cleanup(func() { check(t, unix.Unlink(name)) })
		}
	}
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: srv.Path}))
	late := unix.NsecToTimeval(patience.Nanoseconds())
	check(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late))
	return &bare{fd, []byte(message), make([]byte, len(message))}
}

func (c *bare) echo(t testing.TB) {
	if _, err := unix.Write(c.fd, c.sent); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(c.sent); {
		m, err := unix.Read(c.fd, c.back[n:])
		if err != nil && err != unix.EINTR || m == 0 {
			t.Fatal(m, err)
		}
		n += max(m, 0)
	}
}

// Not parallel: it counts the allocations of the process.
func TestEchoDoesNotAllocate(t *testing.T) {
	clients := map[string]func(testing.TB) *bare{"named datagram": newNamedDatagram}
	for _, typ := range unixTypes {
		clients[string(typ)] = func(t testing.TB) *bare {
			return newBare(t, serveSocket(t, listenOn(t, typ), config{}, zerolog.Disabled).Addr)
		}
	}
	for name, newClient := range clients {
		t.Run(name, func(t *testing.T) {
			client := newClient(t)
			const echoes = 2000
			for range 10 {
				client.echo(t)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range echoes {
				client.echo(t)
			}
			runtime.ReadMemStats(&after)
			// The runtime allocates, too.
			if n := after.Mallocs - before.Mallocs; n > echoes/20 {
				t.Errorf("%d echoes cost %d allocations", echoes, n)
			}
		})
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, typ := range unixTypes {
		b.Run(string(typ), func(b *testing.B) {
			client := newBare(b, serveSocket(b, listenOn(b, typ), config{}, zerolog.Disabled).Addr)
			b.SetBytes(int64(len(message)))
			b.ReportAllocs()
			for b.Loop() {
				client.echo(b)
			}
		})
	}
}

func newNamedDatagram(t testing.TB) *bare {
	t.Helper()
	srv := serveSocket(t, listenOn(t, addr.Datagram), config{}, zerolog.Disabled)
	return newNamed(t, srv.Addr, sock.AutoName(filepath.Dir(srv.Addr.Path)))
}

// Our own client uses such a name; BenchmarkEcho uses abstract names.
func BenchmarkDatagramNamed(b *testing.B) {
	client := newNamedDatagram(b)
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		client.echo(b)
	}
}
