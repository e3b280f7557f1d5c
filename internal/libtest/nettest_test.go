// Package libtest tests package uds with other people's suites and programs. It
// is not in the module of package uds, which needs nothing but golang.org/x/sys.
package libtest

import (
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var check = testkit.Check

// pipe makes connections to l, one at a time.
func pipe(l net.Listener, dial func() (net.Conn, error)) nettest.MakePipe {
	return func() (client, server net.Conn, stop func(), err error) {
		if client, err = dial(); err != nil {
			return nil, nil, nil, err
		}
		if server, err = l.Accept(); err != nil {
			_ = client.Close()
			return nil, nil, nil, err
		}
		return client, server, func() { _, _ = client.Close(), server.Close() }, nil
	}
}

func TestConn(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		for name, c := range map[string]uds.ListenConfig{"plain": {}, "takeover": {Takeover: true}, "renew": {Renew: true}} {
			t.Run(network+" "+name, func(t *testing.T) {
				path := testkit.Dir(t) + "/s"
				l, err := c.Listen(t.Context(), network, path)
				check(t, err)
				if c.Takeover { // test one that was taken over
					old := l
					l, err = c.Listen(t.Context(), network, path)
					check(t, err)
					check(t, old.Close())
				}
				defer func() { check(t, l.Close()) }()
				nettest.TestConn(t, pipe(l, func() (net.Conn, error) { return net.Dial(l.Addr().Network(), l.Addr().String()) }))
			})
		}
	}
}

func TestConnOfNamedClients(t *testing.T) {
	d := testkit.Dir(t)
	l, err := uds.Listen("unix", d+"/s")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	nettest.TestConn(t, pipe(l, func() (net.Conn, error) { return uds.Dialer{Name: uds.AutoName(d)}.Dial("unix", d+"/s") }))
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
