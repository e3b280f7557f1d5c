package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The default sizes of one receive on a stream in bytes: of the echo of a message,
// as in the example program that this one replaces, and of an echo to the end.
const (
	messageChunk = 16
	copyChunk    = 64 << 10
)

func (e *exchange) sendBytes(context.Context) error {
	if in, ok := e.in.(*input); ok {
		if err := e.sendFile(in.Reader); err != nil {
			return e.unsent(err)
		}
	}
	_, err := io.CopyBuffer(e, e.in, make([]byte, copyChunk))
	return err
}

// Write sends a part of a stream.
func (e *exchange) Write(p []byte) (n int, err error) {
	e.sent.Add(int64(len(p))) // count first, so that no echo is larger than the count
	if err = e.writeBy(); err == nil {
		n, err = e.conn.Write(p)
	}
	return n, e.unsent(err)
}

// sendFile sends a regular file with sendfile(2), which does not copy it through
// this program. What it cannot send, it leaves unread.
func (e *exchange) sendFile(in io.Reader) error {
	file, ok := in.(*os.File)
	if !ok {
		return nil
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	conn, err := e.conn.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	for sent := error(nil); sent == nil; {
		if err := e.writeBy(); err != nil {
			return err
		}
		err := conn.Write(func(fd uintptr) bool {
			n, sent = unix.Sendfile(int(fd), int(file.Fd()), nil, 1<<20)
			e.sent.Add(int64(max(n, 0)))
			return sent != unix.EAGAIN
		})
		if err != nil || n == 0 {
			return err
		}
	}
	return nil
}

func (e *exchange) receiveBytes(context.Context) error {
	for e.toEnd || e.got < e.length {
		if !e.toEnd {
			e.buf = e.buf[:min(int64(len(e.buf)), e.length-e.got)]
		}
		due := e.done.Load() || e.sent.Load() != e.got
		p, err := e.receive(e.Timeout)
		switch {
		case err == nil:
			e.got += int64(len(p))
			if err := e.received(p); err != nil {
				return err
			}
		case errors.Is(err, os.ErrDeadlineExceeded) && !due:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("no answer for %v: received %d of %d bytes; is the server paused or overloaded?",
				e.Timeout, e.got, e.sent.Load())
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			// ECONNRESET is end of file too, from a server that had not read
			// everything.
			if e.toEnd && e.done.Load() && e.got >= e.sent.Load() {
				return nil
			}
			return fmt.Errorf("received %d of %d bytes before %w%s", e.got, e.sent.Load(), errClosed, whyAtOnce(e.got))
		default:
			return fmt.Errorf("receive: %w", err)
		}
	}
	return nil
}
