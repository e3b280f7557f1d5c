//go:build linux

package sock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// Wait waits until fd, which is non-blocking, is readable or its other end has
// closed. The error is that of ctx if ctx ends first, or an errno of fcntl(2).
// Meanwhile the goroutine occupies no thread.
func Wait(ctx context.Context, fd int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := duplicate(fd)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	err = conn.Read(func(uintptr) bool {
		events, err := Poll(fd, unix.POLLIN)
		return err != nil || events != 0
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// duplicate returns a descriptor for package net or os. Package net duplicates
// it again and sets the flags of neither copy.
func duplicate(fd int) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(own), "socket"), nil
}

// HungUp reports whether the other end of fd is closed in both directions,
// poll(2), POLLHUP. End of file means that only one direction is closed.
func HungUp(fd int) bool {
	events, err := Poll(fd, 0)
	return err == nil && events&unix.POLLHUP != 0
}

// Poll is poll(2) of one descriptor. It does not wait: it returns what can be done
// now of what is asked for, or 0.
func Poll(fd int, events int16) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	_, err := raw.Retry(func() (int, error) { return unix.Poll(fds, 0) })
	return fds[0].Revents, err
}
