//go:build linux && !uds_portable

package uds

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// A keeper hands a listener's socket over, and recreates it if its file was
// removed. Until it has ended, its goroutine alone uses the socket and the
// handover.
type keeper struct {
	listener *Listener
	socket   *sock.Socket
	handover *sock.Handover // nil if the socket is not handed over
	renew    bool
	renewed  func(error)
	stop     context.CancelFunc
	ended    chan struct{}
}

const (
	renewPeriod = time.Second            // between two looks at the file
	pause       = 100 * time.Millisecond // after an error that may end by itself, such as EMFILE
)

func (k *keeper) run(ctx context.Context) {
	defer close(k.ended)
	for ctx.Err() == nil && k.listener.runs() {
		err := k.wait(ctx)
		if err == nil {
			err = k.step()
		}
		if k.renew && k.listener.runs() && (k.handover == nil || k.handover.State() == sock.Serving) {
			k.renewAll(ctx)
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			sleep(ctx, pause)
		}
	}
}

// wait waits for the next step of the handover, or until it is time to look at
// the file.
func (k *keeper) wait(ctx context.Context) error {
	if k.renew {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, renewPeriod)
		defer cancel()
	}
	if k.handover == nil || k.handover.FD() < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return sock.Wait(ctx, k.handover.FD())
}

// step does what the handover's new state asks for, see [sock.State].
func (k *keeper) step() error {
	before := k.handover.State()
	state, err := k.handover.Step()
	switch {
	case err != nil && before == sock.Yielded:
		k.listener.finish(err)
	case state == before:
	case state == sock.Yielding:
		k.listener.pause()
		k.handover.Yield()
	case state == sock.Released:
		k.listener.finish(net.ErrClosed)
	case state == sock.Serving && before == sock.Yielded:
		k.listener.resume()
	}
	return err
}

// renewAll recreates the socket and the control socket, if their files were
// removed. What fails is tried again later, unless something else is there now.
func (k *keeper) renewAll(ctx context.Context) {
	if k.socket.Lost() {
		err := k.renewSocket(ctx)
		if errors.Is(err, sock.ErrInUse) || errors.Is(err, sock.ErrNotSocket) {
			k.listener.finish(err)
			return
		}
		if k.renewed != nil {
			k.renewed(err)
		}
	}
	if k.handover != nil && k.handover.Lost() {
		_ = k.handover.Renew()
	}
}

func (k *keeper) renewSocket(ctx context.Context) error {
	if k.handover != nil {
		k.handover.Refuse() // another server has the old socket
	}
	renewed, err := k.socket.Renew()
	if err != nil {
		return unprefixed(k.socket.Addr(), err)
	}
	inner, err := sock.NetListener(renewed.FD())
	if err != nil {
		return errors.Join(err, renewed.Close())
	}
	old := k.socket
	k.socket = renewed
	if k.handover != nil {
		k.handover.Replace(old, renewed)
	}
	_ = old.Refuse() // the file may have been moved, and clients may still connect to it
	k.listener.renewed(inner, acceptAll(ctx, old))
	return old.Close()
}

// acceptAll returns the connections that wait at a socket. If the process lacks
// descriptors, it waits for them.
func acceptAll(ctx context.Context, s *sock.Socket) (waiting []*net.UnixConn) {
	for {
		c, err := sock.Accept(s.FD())
		switch {
		case err == nil:
			waiting = append(waiting, c)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINVAL), ctx.Err() != nil: // EINVAL: it is shut down
			return waiting
		default:
			sleep(ctx, pause)
		}
	}
}

// end ends the goroutine and gives up the files.
func (k *keeper) end() error {
	k.stop()
	<-k.ended
	return k.close()
}

// close gives up the files, first the one through which other servers ask.
func (k *keeper) close() error {
	if k.handover == nil {
		return k.socket.Close()
	}
	k.handover.Leave()
	err := k.socket.Close()
	k.handover.Close()
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
