package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Client sends files to a server.
type Client struct {
	Timeout time.Duration // the longest wait for an answer; 0: no limit
	Log     zerolog.Logger
}

// Sum sends f and returns the sum that the server read in it. The connection
// may be used again.
func (c *Client) Sum(ctx context.Context, conn *sock.Conn, f *os.File) (Sum, error) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if c.Timeout > 0 {
		if err := conn.SetDeadline(time.Now().Add(c.Timeout)); err != nil {
			return Sum{}, err
		}
	}
	c.Log.Info().Str("file", logtext.Escape(f.Name())).Int("bytes", len(Request)).Int("descriptors", 1).
		Msg("sending '" + Request + "' with the descriptor of " + logtext.Escape(f.Name()))
	answer, err := exchange(conn, f)
	switch {
	case ctx.Err() != nil:
		return Sum{}, context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Sum{}, fmt.Errorf("no answer for %v: is the file large, or the server paused or overloaded?", c.Timeout)
	case errors.Is(err, io.EOF):
		return Sum{}, fmt.Errorf("the server closed the connection without an answer; this may not be a files: address, or the server may deny uid %d gid %d", os.Geteuid(), os.Getegid())
	case err != nil:
		return Sum{}, err
	}
	c.Log.Info().Int("bytes", len(answer)).Msg("received " + logtext.Quote(answer))
	return ParseAnswer(string(answer))
}

func exchange(conn *sock.Conn, f *os.File) (answer []byte, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) { sendErr = conn.SendFiles([]byte(Request), int(fd)) }); err != nil {
		return nil, err
	}
	// A server that rejected this client has sent the reason before it closed.
	// The reason can still be read, but the error of the close comes first.
	if errors.Is(sendErr, unix.EPERM) { // SO_PASSRIGHTS=0 at the other end
		return nil, fmt.Errorf("send: %w (EPERM): the server takes no descriptors; this may not be a files: address", sendErr)
	}
	if sendErr != nil && !errors.Is(sendErr, unix.EPIPE) && !errors.Is(sendErr, unix.ECONNRESET) {
		return nil, fmt.Errorf("send: %w", sendErr)
	}
	r := sock.NewReceiver(MaxRecord)
	answer, err = conn.Receive(r)
	if err == unix.ECONNRESET {
		answer, err = conn.Receive(r)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("receive: %w", err)
	}
	return answer, err
}

// Seal makes memory that holds everything r reads to its end, and that no
// process can change any more. So any receiver may map it.
func Seal(name string, r io.Reader) (f *os.File, err error) {
	fd, err := unix.MemfdCreate("udsecho", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f = os.NewFile(uintptr(fd), name)
	if _, err = io.Copy(f, r); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, Seals|unix.F_SEAL_SEAL)
		err = os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
