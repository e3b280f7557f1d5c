package sock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
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
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	err = raw.Read(func(uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := retry(func() (int, error) { return unix.Poll(poll, 0) })
		return err != nil || n > 0
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
