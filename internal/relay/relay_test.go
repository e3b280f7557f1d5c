package relay_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/relay"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// relayHere relays from one path to another in this process; stop ends it.
func relayHere(t testing.TB, kind addr.Type, from, to string) (stop func()) {
	t.Helper()
	l, err := addr.Listen(sock.ListenConfig{}, addr.Addr{Type: kind, Path: from})
	check(t, err)
	target := addr.Addr{Type: kind, Path: to}
	srv, err := server.New(server.Config{Log: zerolog.Nop(), DrainTimeout: testkit.Patience})
	check(t, err)
	r, err := relay.New(srv, relay.Config{
		Target: target,
		Dial:   func(ctx context.Context) (*sock.Conn, error) { return addr.Dial(ctx, target, sock.DialConfig{}) },
		Check:  func(unix.Ucred) error { return nil },
	})
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var serving errgroup.Group
	serving.Go(func() error { return srv.Serve(ctx, server.Service{Socket: l, Handler: r}) })
	return func() {
		cancel()
		check(t, serving.Wait())
	}
}

// Whatever two ends send, in any pieces and order, each receives exactly what
// the other sent, and its end.
func FuzzRelay(f *testing.F) {
	f.Add([]byte{0x01, 0x82, 0x7f, 0xff, 0x00, 0x80})
	f.Add([]byte{0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0xff, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 64 {
			return
		}
		d := testkit.Dir(t)
		l, err := net.Listen("unix", d+"/s")
		check(t, err)
		defer func() { _ = l.Close() }()
		defer relayHere(t, addr.Stream, d+"/r", d+"/s")()
		client, err := net.Dial("unix", d+"/r")
		check(t, err)
		target, err := l.Accept()
		check(t, err)
		ends := [2]*net.UnixConn{client.(*net.UnixConn), target.(*net.UnixConn)}
		var said, heard [2]bytes.Buffer
		var all errgroup.Group
		for i, end := range ends {
			check(t, end.SetDeadline(time.Now().Add(testkit.Patience)))
			all.Go(func() error {
				_, err := io.Copy(&heard[i], end)
				return err
			})
		}
		for i, step := range script { // which end sends, and how much
			piece := bytes.Repeat([]byte{byte(i)}, int(step&0x7f)*int(step&0x7f)*8+1)
			said[step>>7].Write(piece)
			_, err := ends[step>>7].Write(piece)
			check(t, err)
		}
		for _, end := range ends {
			check(t, end.CloseWrite())
		}
		check(t, all.Wait())
		for i, end := range ends {
			_ = end.Close()
			if !bytes.Equal(heard[i].Bytes(), said[1-i].Bytes()) {
				t.Errorf("end %d heard %d bytes, the other said %d", i, heard[i].Len(), said[1-i].Len())
			}
		}
	})
}
