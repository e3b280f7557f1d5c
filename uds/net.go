package uds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listen listens at a stream or seqpacket address, TYPE:PATH as [ParseAddr]
// reads it. The listener works with net/http, gRPC and other packages that
// take one. Listen replaces a stale socket file and fails if a server has the
// path; closing the listener removes only its own file. The errors are those
// of [ListenConfig.Listen]; ctx ends the wait for a server that hands over.
//
// With c.Takeover, Listen takes the socket from the server that runs at the
// address, if there is one and it was started with Takeover too. That server's
// Accept then returns [net.ErrClosed], while its connections stay. That server
// should serve them until the clients close them, and exit. With net/http,
// http.Server.Shutdown alone would lose requests; the example HttpTakeover
// shows what loses none.
func Listen(ctx context.Context, address string, c ListenConfig) (net.Listener, error) {
	s, h, err := c.open(ctx, address, false)
	if err != nil {
		return nil, err
	}
	l, err := s.Listener()
	if err == nil && h != nil {
		own := l.(*listener)
		own.handover = h
		err = own.offer()
	}
	if err != nil {
		_ = s.Close()
		if h != nil {
			h.Close()
		}
		return nil, err
	}
	return l, nil
}

// Listener hands a stream or seqpacket socket to package net. The listener
// takes over the socket: closing the listener closes the socket.
func (s *Socket) Listener() (net.Listener, error) {
	inner, err := netListener(s.fd)
	if err != nil {
		return nil, err
	}
	return &listener{socket: s, inner: inner, changed: make(chan struct{})}, nil
}

// ListenPacket listens for datagrams at an address, datagram:PATH. It works
// like Listen, except that no server can take the socket over.
func ListenPacket(ctx context.Context, address string, c ListenConfig) (net.PacketConn, error) {
	c.Takeover = false
	s, _, err := c.open(ctx, address, true)
	if err != nil {
		return nil, err
	}
	f, err := duplicate(s.fd)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	defer func() { _ = f.Close() }()
	inner, err := net.FilePacketConn(f)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &packetConn{inner, s}, nil
}

func (c ListenConfig) open(ctx context.Context, address string, datagrams bool) (*Socket, *Handover, error) {
	a, err := ParseAddr(address)
	if err != nil {
		return nil, nil, err
	}
	if datagrams != (a.Type == Datagram) {
		return nil, nil, fmt.Errorf("%w %q: Listen is for stream and seqpacket, ListenPacket for datagram", ErrAddress, address)
	}
	if !c.Takeover {
		s, err := c.Listen(a)
		return s, nil, err
	}
	h, err := c.Handover(a)
	if err == nil && h.Pending() {
		err = h.takeOver(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	return h.Sockets[0], h, nil
}

// takeOver waits until the running server hands over.
func (h *Handover) takeOver(ctx context.Context) error {
	poll := []unix.PollFd{{Fd: int32(h.Claim()), Events: unix.POLLIN}}
	for {
		const patience = 100 // ms between two checks of ctx
		n, err := unix.Poll(poll, patience)
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case err == unix.EINTR || err == nil && n == 0:
			continue
		case err == nil:
			err = h.Claimed()
		}
		if err != nil {
			h.Close()
			return err
		}
		h.Commit()
		return nil
	}
}

func netListener(fd int) (*net.UnixListener, error) {
	f, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// duplicate returns a descriptor for package net. Package net duplicates it
// again and sets the flags of neither copy.
func duplicate(fd int) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(own), "socket"), nil
}

// A packetConn also removes the socket file, which package net does not know
// about.
type packetConn struct {
	net.PacketConn
	socket *Socket
}

func (p *packetConn) Close() error { return errors.Join(p.socket.Close(), p.PacketConn.Close()) }

// A listener also removes the socket file, which package net does not know
// about, and hands the socket over.
type listener struct {
	inner    *net.UnixListener
	socket   *Socket
	handover *Handover         // nil if the socket is not handed over
	control  *net.UnixListener // successors connect to it
	serving  sync.WaitGroup
	close    sync.Once

	mu      sync.Mutex
	closed  bool
	yielded bool          // a successor owns the socket, or will
	changed chan struct{} // closed when yielded or closed changes
}

// Addr returns the address, an [Addr].
func (l *listener) Addr() net.Addr { return l.socket.addr }

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.inner.Accept()
		l.mu.Lock()
		closed, yielded, changed := l.closed, l.yielded, l.changed
		l.mu.Unlock()
		switch {
		case err == nil || !errors.Is(err, os.ErrDeadlineExceeded) && !closed:
			return conn, err
		case closed:
			return nil, &net.OpError{Op: "accept", Net: l.socket.addr.Network(), Addr: l.socket.addr, Err: net.ErrClosed}
		case yielded: // accept nothing until it is clear which process owns the socket
			<-changed
		}
	}
}

// Close ends Accept and removes the socket file. Closing again does nothing.
func (l *listener) Close() (err error) {
	l.close.Do(func() {
		l.set(func() { l.closed = true })
		err = l.inner.Close()
		if l.control != nil {
			_ = l.control.Close()
		}
		l.serving.Wait()
		err = errors.Join(err, l.release())
	})
	return err
}

// release closes and removes what package net does not own.
func (l *listener) release() error {
	if l.handover != nil {
		l.handover.Remove()
	}
	err := l.socket.Close()
	if l.handover != nil {
		l.handover.Close()
	}
	return err
}

func (l *listener) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
}

// offer answers successors in the background, one at a time.
func (l *listener) offer() error {
	control, err := netListener(l.handover.Control())
	if err != nil {
		return err
	}
	l.control = control
	l.serving.Go(func() {
		for {
			conn, err := l.control.AcceptUnix()
			if err != nil {
				return
			}
			if l.handTo(conn) {
				return
			}
		}
	})
	return nil
}

// handTo hands the socket to a successor, and reports whether the successor
// serves it.
func (l *listener) handTo(conn *net.UnixConn) bool {
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() { // Close ends a handover that hangs
		for {
			l.mu.Lock()
			closed, changed := l.closed, l.changed
			l.mu.Unlock()
			if closed {
				_ = conn.SetDeadline(time.Now())
				return
			}
			select {
			case <-changed:
			case <-ended:
				return
			}
		}
	}()
	next := func() (step Step) {
		step = Gone
		_ = raw.Read(func(fd uintptr) bool {
			step = (&Offer{fd: int(fd)}).Next()
			return step != Waits
		})
		return step
	}
	err = errors.Join(raw.Control(func(fd uintptr) { err = l.handover.hello(int(fd)) }), err)
	if err != nil || next() != Claims {
		return false
	}
	l.set(func() { l.yielded = true })
	_ = l.inner.SetDeadline(time.Now())
	_ = raw.Control(func(fd uintptr) { (&Offer{fd: int(fd)}).Yield() })
	if next() != Serves {
		err := l.handover.TakeBack()
		_ = l.inner.SetDeadline(time.Time{})
		l.set(func() { l.yielded, l.closed = false, l.closed || err != nil })
		return false
	}
	l.handover.Release()
	l.set(func() { l.closed = true })
	return true
}
