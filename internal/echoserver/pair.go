package echoserver

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/internal/transport"
)

// ServeConn serves one stream connection, which it takes over, such as an end
// of a socketpair(2) that this process has inherited: to its end, or until ctx
// ends. It closes any socket, also where it fails, and leaves alone what is no
// socket: a number that nobody has passed on may be a descriptor of the Go
// runtime's. Nothing was accepted, so neither that is mentioned nor that the server
// waits for another.
func (c Config) ServeConn(ctx context.Context, fd int) error {
	if sotype, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || sotype != unix.SOCK_STREAM {
		if err == nil {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("descriptor %d is no stream socket", fd)
	}
	l, err := loop.New(c.Spin)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	// Like a server that drains: it welcomes nobody else.
	s := newServer(c, l)
	s.streams, s.drainUntil = transport.NewReceiver(c.Chunk), time.Now()
	defer s.close()
	transport.InlineUrgent(fd)
	err = unix.SetNonblock(fd, true) // or the loop would wait in read(2)
	if err == nil {
		err = l.Add(fd, &conn{server: s, fd: fd, events: unix.EPOLLIN, id: 1, uid: -1}, unix.EPOLLIN)
	}
	if err != nil {
		_ = unix.Close(fd)
		return os.NewSyscallError("serve a connection", err)
	}
	s.opened(1)
	defer l.InterruptAt(ctx)()
	for s.open > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.Wait(-1); err != nil {
			return err
		}
	}
	return nil
}
