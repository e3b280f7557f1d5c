package uds

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A Listener has the methods of *[net.UnixListener], except SetUnlinkOnClose:
// Close removes the socket file if this listener made it or has taken it over,
// and no other server has taken it over since.
type Listener struct {
	addr  *net.UnixAddr
	files func() error // removes and closes what package net does not know about
	close sync.Once

	mu        sync.Mutex
	change    sync.Cond // of what follows
	inner     *net.UnixListener
	queue     []*net.UnixConn // connections that waited at a socket before the last renewal
	accepting int             // Accepts that wait in inner
	deadline  time.Time
	paused    bool // another server may accept
	pauses    int
	end       error // why Accept has ended, if not nil
	closed    bool
}

func newListener(network, path string, inner *net.UnixListener, files func() error) *Listener {
	inner.SetUnlinkOnClose(false)
	l := &Listener{addr: &net.UnixAddr{Name: path, Net: network}, files: files, inner: inner}
	l.change.L = &l.mu
	return l
}

// Addr returns the address, a *[net.UnixAddr].
func (l *Listener) Addr() net.Addr { return l.addr }

// Accept waits for the next connection, a *[net.UnixConn]. After Close, or when
// another server has taken the socket over, the error is [net.ErrClosed].
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptUnix is Accept without the interface.
func (l *Listener) AcceptUnix() (*net.UnixConn, error) {
	for {
		inner, pauses, queued, err := l.begin()
		if queued != nil {
			return queued, nil
		}
		if err != nil {
			return nil, l.opError("accept", err)
		}
		c, err := inner.AcceptUnix()
		switch again, ended := l.done(inner, pauses, err); {
		case err == nil:
			return c, nil
		case ended != nil:
			return nil, l.opError("accept", ended)
		case !again:
			return nil, err
		}
	}
}

// begin returns the listener to accept from, or a connection. It waits while
// another server may accept.
func (l *Listener) begin() (inner *net.UnixListener, pauses int, queued *net.UnixConn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case len(l.queue) > 0:
			queued, l.queue = l.queue[0], l.queue[1:]
			return nil, 0, queued, nil
		case l.end != nil:
			return nil, 0, nil, l.end
		case !l.paused:
			l.accepting++
			return l.inner, l.pauses, nil, nil
		case l.deadline.IsZero():
			l.change.Wait()
		case time.Now().Before(l.deadline):
			wake := time.AfterFunc(time.Until(l.deadline), func() {
				l.mu.Lock() // not before Wait waits
				defer l.mu.Unlock()
				l.change.Broadcast()
			})
			l.change.Wait()
			wake.Stop()
		default:
			return nil, 0, nil, os.ErrDeadlineExceeded
		}
	}
}

// done ends what begin has begun. It reports whether to accept again after err,
// or why Accept has ended.
func (l *Listener) done(inner *net.UnixListener, pauses int, err error) (again bool, ended error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepting--
	l.change.Broadcast()
	// A timeout may be that of pause. If it was the caller's, the next one comes
	// at once.
	return l.inner != inner || l.pauses != pauses && errors.Is(err, os.ErrDeadlineExceeded), l.end
}

// pause returns when nothing is accepted any more.
func (l *Listener) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = true
	l.pauses++
	_ = l.inner.SetDeadline(time.Unix(1, 0))
	for l.accepting > 0 {
		l.change.Wait()
	}
}

func (l *Listener) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = false
	_ = l.inner.SetDeadline(l.deadline)
	l.change.Broadcast()
}

// renewed replaces the socket, and first returns the connections that waited at
// the old one.
func (l *Listener) renewed(inner *net.UnixListener, waiting []*net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		closeAll(waiting)
	} else {
		l.queue = append(l.queue, waiting...)
	}
	if l.end != nil {
		_ = inner.Close()
		return
	}
	_ = l.inner.Close()
	l.inner = inner
	_ = inner.SetDeadline(l.deadline)
}

func closeAll(conns []*net.UnixConn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// finish ends Accept and closes the copy of the socket that package net has.
func (l *Listener) finish(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == nil {
		l.end = reason
		_ = l.inner.Close()
		l.change.Broadcast()
	}
	if l.closed {
		closeAll(l.queue)
		l.queue = nil
	}
}

// Close ends Accept and removes the socket file. While another server takes the
// socket over, the file is left to that server. Closing again waits for the first
// Close, so that the file is gone then too, and returns [net.ErrClosed].
func (l *Listener) Close() error {
	err := l.opError("close", net.ErrClosed)
	l.close.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.finish(net.ErrClosed)
		err = opError("close", l.addr.Net, l.addr.Name, l.files())
	})
	return err
}

// runs reports whether Accept has not ended.
func (l *Listener) runs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end == nil
}

// SetDeadline limits how long Accept waits, as that of [net.UnixListener]; the
// zero time means no limit.
func (l *Listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end != nil {
		return l.opError("set", l.end)
	}
	l.deadline = t
	l.change.Broadcast()
	if l.paused {
		return nil // resume sets it
	}
	return l.inner.SetDeadline(t)
}

// File returns a copy of the socket, as that of [net.UnixListener]. The copy
// keeps the socket open after a takeover, until it is closed.
func (l *Listener) File() (*os.File, error) {
	inner, err := l.newest("file")
	if err != nil {
		return nil, err
	}
	return inner.File()
}

// SyscallConn returns the socket, for its options.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	inner, err := l.newest("raw-control")
	if err != nil {
		return nil, err
	}
	return inner.SyscallConn()
}

func (l *Listener) newest(op string) (*net.UnixListener, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end != nil {
		return nil, l.opError(op, l.end)
	}
	return l.inner, nil
}

func (l *Listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: l.addr.Net, Addr: l.addr, Err: err}
}
