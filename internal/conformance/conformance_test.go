// Package conformance holds the connections of the library to x/net's tests of a
// net.Conn. It is not in the library's module, which needs nothing but
// golang.org/x/sys.
package conformance

import (
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var check = testkit.Check

func TestConn(t *testing.T) {
	plain := func(l net.Listener, _ string) (net.Conn, error) {
		return net.Dial(l.Addr().Network(), l.Addr().String())
	}
	for _, tt := range []struct {
		name, network string
		listen        uds.ListenConfig
		dial          func(l net.Listener, d string) (net.Conn, error)
	}{
		{"plain", "unix", uds.ListenConfig{}, plain},
		{"plain", "unixpacket", uds.ListenConfig{}, plain},
		{"takeover", "unix", uds.ListenConfig{Takeover: true}, plain},
		{"takeover", "unixpacket", uds.ListenConfig{Takeover: true}, plain},
		{"renew", "unix", uds.ListenConfig{Renew: true}, plain},
		{"renew", "unixpacket", uds.ListenConfig{Renew: true}, plain},
		{"named client", "unix", uds.ListenConfig{}, func(l net.Listener, d string) (net.Conn, error) {
			return uds.Dialer{Name: uds.AutoName(d)}.Dial("unix", l.Addr().String())
		}},
		{"sock.Conn", "unix", uds.ListenConfig{}, func(l net.Listener, _ string) (net.Conn, error) {
			return sock.Dial(t.Context(), sock.Addr{Type: sock.Stream, Path: l.Addr().String()}, sock.DialConfig{})
		}},
		{"named sock.Conn", "unix", uds.ListenConfig{}, func(l net.Listener, d string) (net.Conn, error) {
			return sock.Dial(t.Context(), sock.Addr{Type: sock.Stream, Path: l.Addr().String()}, sock.DialConfig{Bind: sock.AutoName(d)})
		}},
	} {
		t.Run(tt.network+" "+tt.name, func(t *testing.T) {
			d := testkit.Dir(t)
			l, err := tt.listen.Listen(t.Context(), tt.network, d+"/s")
			check(t, err)
			if tt.listen.Takeover { // test one that was taken over
				old := l
				l, err = tt.listen.Listen(t.Context(), tt.network, d+"/s")
				check(t, err)
				check(t, old.Close())
			}
			nettest.TestConn(t, func() (client, server net.Conn, stop func(), err error) {
				if client, err = tt.dial(l, d); err != nil {
					return nil, nil, nil, err
				}
				if server, err = l.Accept(); err != nil {
					_ = client.Close()
					return nil, nil, nil, err
				}
				return client, server, func() { _, _ = client.Close(), server.Close() }, nil
			})
			check(t, l.Close())
			testkit.WantFiles(t, d)
		})
	}
}

func TestPair(t *testing.T) {
	nettest.TestConn(t, func() (client, server net.Conn, stop func(), err error) {
		own, other, err := uds.Pair()
		if err != nil {
			return nil, nil, nil, err
		}
		defer func() { _ = other.Close() }()
		if server, err = net.FileConn(other); err != nil {
			return nil, nil, nil, err
		}
		var once sync.Once
		return own, server, func() { once.Do(func() { _, _ = own.Close(), server.Close() }) }, nil
	})
}
