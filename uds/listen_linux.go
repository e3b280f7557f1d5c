//go:build linux && !uds_portable

package uds

import (
	"context"
	"errors"
	"strings"

	"github.com/udsecho/udsecho/uds/sock"
)

// floor returns the configuration of the floor below.
func (c ListenConfig) floor(network string) sock.ListenConfig {
	f := sock.ListenConfig{Mode: c.Mode, Backlog: c.Backlog}
	if c.Control != nil {
		f.Control = func(a sock.Addr, fd int) error { return c.Control(network, a.Path, descriptor(fd)) }
	}
	return f
}

func (c ListenConfig) listen(ctx context.Context, network, path string) (*Listener, error) {
	s, h, err := c.sockets(ctx, addr(network, path), c.floor(network))
	if err != nil {
		return nil, err
	}
	k := &keeper{socket: s, handover: h, renew: c.Renew, renewed: c.Renewed, ended: make(chan struct{})}
	inner, err := sock.NetListener(s.FD())
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	if h != nil && h.Pending() {
		h.Commit() // from here on this process serves
	}
	k.listener = newListener(network, path, inner, k.end)
	keep, stop := context.WithCancel(context.Background())
	k.stop = stop
	if h == nil && !c.Renew {
		close(k.ended)
	} else {
		go k.run(keep)
	}
	return k.listener, nil
}

// sockets makes a socket, or takes it over. Then it has claimed it, and not
// committed.
func (c ListenConfig) sockets(ctx context.Context, a sock.Addr, f sock.ListenConfig) (*sock.Socket, *sock.Handover, error) {
	if !c.Takeover {
		s, err := f.Listen(a)
		return s, nil, unprefixed(a, err)
	}
	h, err := f.Handover(ctx, a)
	if err != nil {
		return nil, nil, unprefixed(a, err)
	}
	if h.State() == sock.Claiming {
		h.Claim()
	}
	for h.State() == sock.Claiming && err == nil {
		if err = sock.Wait(ctx, h.FD()); err == nil {
			_, err = h.Step()
		}
	}
	if err != nil {
		h.Close()
		return nil, nil, err
	}
	return h.Sockets[0], h, nil
}

// unprefixed returns an error of the floor below without the address in front,
// which a *net.OpError has too.
func unprefixed(a sock.Addr, err error) error {
	if err == nil {
		return nil
	}
	text := strings.TrimPrefix(err.Error(), "listen ")
	return &shorter{err, strings.TrimPrefix(strings.TrimPrefix(text, "again on "), a.String()+": ")}
}

type shorter struct {
	error
	text string
}

func (s *shorter) Error() string { return s.text }
func (s *shorter) Unwrap() error { return s.error }

func (c ListenConfig) listenPacket(_ context.Context, path string) (*PacketConn, error) {
	a := addr("unixgram", path)
	s, err := c.floor("unixgram").Listen(a)
	if err != nil {
		return nil, unprefixed(a, err)
	}
	inner, err := sock.NetConn(s.FD())
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &PacketConn{UnixConn: inner, files: s.Close}, nil
}
