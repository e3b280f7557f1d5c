package server

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/uds/sock"
)

// ServeConn serves one stream connection, and takes it over, for example an
// end of a socketpair(2) that this process has inherited. It returns at the
// end of the connection, or when ctx ends. It closes any socket, even if it
// fails. It leaves a descriptor that is not a socket alone: a number that the
// parent did not pass on may be a descriptor of the Go runtime. It logs
// neither an accepted connection nor that the server waits for another one.
func (c Config) ServeConn(ctx context.Context, fd int) error {
	if sotype, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || sotype != unix.SOCK_STREAM {
		if err == nil {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("descriptor %d is not a stream socket", fd)
	}
	l, err := loop.New(c.Spin)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	// Like a server that drains, it accepts no other client.
	s := newServer(c, l)
	s.streams, s.drainUntil = sock.NewReceiver(c.Chunk), time.Now()
	s.streams.TakeRights()
	defer s.close()
	sock.InlineUrgent(fd)
	err = unix.SetNonblock(fd, true) // otherwise the loop would wait in read(2)
	if err == nil {
		err = l.Add(fd, &conn{server: s, fd: fd, events: unix.EPOLLIN, id: 1, uid: -1}, unix.EPOLLIN)
	}
	if err != nil {
		_ = unix.Close(fd)
		return os.NewSyscallError("serve a connection", err)
	}
	s.opened(1)
	defer l.InterruptAt(ctx)()
	for s.open-s.closing > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.Wait(-1); err != nil {
			return err
		}
		s.ended.each()
	}
	return nil
}
