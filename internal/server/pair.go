package server

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// ServeConn serves one stream connection, and takes it over, for example an
// end of a socketpair(2) that this process has inherited. It returns at the
// end of the connection, or when ctx ends. It closes any socket, even if it
// fails. It leaves a descriptor that is not a socket alone: a number that the
// parent did not pass on may be a descriptor of the Go runtime. It logs
// neither an accepted connection nor that the server waits for another one.
func (s *Server) ServeConn(ctx context.Context, fd int, h Handler) error {
	s.handlers, s.phase, s.stopBy = []Handler{h}, draining, time.Now() // it accepts no other client
	defer s.close()
	if sotype, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || sotype != unix.SOCK_STREAM {
		if err == nil {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("descriptor %d is not a stream socket", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // otherwise the loop would wait in read(2)
		_ = unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	sock.InlineUrgent(fd)
	ln := &listener{server: s, socket: &addr.Socket{Addr: addr.Addr{Type: addr.Stream}}}
	c := Conn{ln: ln, fd: int32(fd), level: zerolog.InfoLevel, UID: -1}
	s.count(&c, nil)
	h.Serve(c)
	defer s.Loop.InterruptAt(ctx)()
	for s.open-s.closing > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.Loop.Wait(-1); err != nil {
			return err
		}
	}
	return nil
}
