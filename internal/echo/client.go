package echo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// A Client sends data and receives the echo.
type Client struct {
	Chunk   int           // size of one receive on a stream, or of one message of Copy, in bytes; 0: see Copy
	Window  int           // messages that may be in flight, for types that keep boundaries; 0: one
	Timeout time.Duration // the longest wait for bytes that are due; 0: no limit
	NoEcho  bool          // the server may send any answer, or none: see Message and Copy
	Lines   bool          // Copy sends each line as a message of its own, if Chunk is 0
	// Redial connects again after a transfer has broken. The transfer then
	// continues with the bytes that have not been echoed; nil: the transfer
	// fails. The client gives up if it receives nothing for Patience. Over
	// datagrams, where no event reports that the server has ended, a silence
	// of Timeout, or 2 s, counts as the end. Redial cannot be used with
	// NoEcho.
	Redial   func(context.Context) (*sock.Conn, error)
	Patience time.Duration
	Log      zerolog.Logger
}

// Message sends message and writes the echo to out: for a stream, as many
// bytes as the message has, for the other types one message.
//
// With NoEcho, it ends its own direction instead, and writes everything that
// it receives until the server has ended the other direction, or is silent for
// Timeout. Types without connections have no such end: for them a silence of 1
// s is enough. An empty message is not sent over a stream, and the direction
// is not ended: the client only listens.
func (c *Client) Message(ctx context.Context, conn *sock.Conn, message []byte, out io.Writer) error {
	if c.NoEcho && len(message) == 0 && !addr.TypeOf(conn).Messages() {
		return c.exchange(ctx, conn, nil, out, -1, zerolog.InfoLevel)
	}
	c.Log.Info().Int("bytes", len(message)).Msg("sending " + logtext.Quote(message))
	want := int64(len(message))
	if c.NoEcho {
		want = -1
	}
	return c.transfer(ctx, conn, bytes.NewReader(message), out, 0, want, zerolog.InfoLevel)
}

// Copy sends in to its end and writes the echo to out. Single chunks and
// messages are events of debug level, as there may be millions.
//
// Over a stream it reads while it writes. A client that wrote everything first
// would block as soon as the buffers in both directions are full, because the
// server, which cannot send, has stopped receiving. Copy then ends its own
// direction and reads to the end of the server's.
//
// Over the other types it sends messages of Chunk bytes, or the whole input as
// one message if Chunk is 0. NoEcho works as in Message.
func (c *Client) Copy(ctx context.Context, conn *sock.Conn, in io.Reader, out io.Writer) error {
	c.Log.Info().Msg("sending standard input")
	return c.transfer(ctx, conn, in, out, c.Chunk, -1, zerolog.DebugLevel)
}

// The default sizes of one receive on a stream in bytes: of the echo of a message,
// as in the example program that this one replaces, and of an echo to the end.
const (
	messageChunk = 16
	copyChunk    = 64 << 10
)

// exchange receives want bytes, or to the end if want is negative. Without an
// input it only receives.
func (c *Client) exchange(ctx context.Context, conn *sock.Conn, in io.Reader, out io.Writer, want int64, level zerolog.Level) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	s := &sender{client: c, conn: conn, in: in, end: want < 0}
	sent := make(chan struct{})
	if in == nil {
		s.done.Store(true)
		close(sent)
	} else {
		go func() { defer close(sent); s.run() }()
	}

	got, err := c.receive(s, out, want, level)
	if err == nil && c.NoEcho {
		awaitSent(ctx, conn, sent)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if sendErr := s.err(); sendErr != nil {
		return sendErr
	}
	if err != nil || c.NoEcho {
		return err
	}
	if short := got < want || want < 0 && (!s.done.Load() || got < s.sent.Load()); short {
		// In full: "received … of … bytes before the server closed the connection".
		return fmt.Errorf("received %d of %d bytes before %w%s", got, s.sent.Load(), errClosed, whyAtOnce(got))
	}
	return nil
}

// errClosed means that a connection ended before the whole echo was received.
var errClosed = errors.New("the server closed the connection")

// whyAtOnce returns the likely reason why a server closes before it has
// answered.
func whyAtOnce[N int | int64](got N) string {
	if got > 0 {
		return ""
	}
	return fmt.Sprintf("; it may be at its connection limit, or deny %s", whoAmI())
}

func whoAmI() string { return fmt.Sprintf("uid %d gid %d", os.Geteuid(), os.Getegid()) }

func (c *Client) receive(s *sender, out io.Writer, want int64, level zerolog.Level) (got int64, err error) {
	size := messageChunk
	if want < 0 {
		size = copyChunk
	}
	buf := make([]byte, cmp.Or(c.Chunk, size))
	for got != want {
		due := s.done.Load() || !c.NoEcho && s.sent.Load() != got
		if c.Timeout > 0 {
			if err := s.conn.SetReadDeadline(time.Now().Add(c.Timeout)); err != nil {
				return got, err
			}
		}
		part := buf
		if want >= 0 {
			part = buf[:min(int64(len(buf)), want-got)]
		}
		n, err := s.conn.Read(part)
		if n > 0 {
			if c.Log.GetLevel() <= level {
				c.Log.WithLevel(level).Int("bytes", n).Msg("received " + logtext.Quote(part[:n]))
			}
			got += int64(n)
			if _, err := out.Write(part[:n]); err != nil {
				return got, fmt.Errorf("write the output: %w", err)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !due: // no bytes were due
		case errors.Is(err, os.ErrDeadlineExceeded) && c.NoEcho:
			return got, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return got, fmt.Errorf("no answer for %v: received %d of %d bytes; is the server paused or overloaded?",
				c.Timeout, got, s.sent.Load())
		case c.NoEcho && got == 0 && errors.Is(err, unix.ECONNRESET):
			return got, errUnread
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			// ECONNRESET is end of file too, from a server that had not read
			// everything.
			return got, nil
		default:
			return got, fmt.Errorf("receive: %w", err)
		}
	}
	return got, nil
}

// awaitSent waits until the input is sent, if the server has ended its own
// direction first and still reads.
func awaitSent(ctx context.Context, conn *sock.Conn, sent <-chan struct{}) {
	if conn.Closed() {
		return
	}
	select {
	case <-sent:
	case <-ctx.Done():
	}
}

// errUnread is ECONNRESET for a client that expects nothing and has received
// nothing.
var errUnread = errors.New("the server closed the connection without an answer, and without reading everything that was sent")

// sender is the direction to the server.
type sender struct {
	client *Client
	conn   *sock.Conn
	in     io.Reader
	end    bool // end the direction after the input
	sent   atomic.Int64
	done   atomic.Bool // all of the input has been sent
	bad    atomic.Pointer[error]
}

// run copies the input to the connection. If the input fails, it closes the
// connection, which ends the receiver. If the connection fails, the receiver
// notices it itself.
func (s *sender) run() {
	if s.client.NoEcho {
		defer s.done.Store(true) // the server may still send after it stops reading
	}
	if file, ok := s.in.(*os.File); ok {
		if err := s.sendFile(file); err != nil {
			s.stop(err)
			return
		}
	}
	buf := make([]byte, copyChunk)
	for {
		n, err := s.in.Read(buf)
		if n > 0 {
			s.sent.Add(int64(n)) // count first, so that no echo is larger than the count
			err := s.client.writeBy(s.conn)
			if err == nil {
				_, err = s.conn.Write(buf[:n])
			}
			if err != nil {
				s.stop(err)
				return
			}
		}
		switch err {
		case nil:
		case io.EOF:
			s.done.Store(true)
			if s.end {
				_ = s.conn.CloseWrite()
			}
			return
		default:
			s.fail(fmt.Errorf("read the input: %w", err))
			return
		}
	}
}

// sendFile sends a regular file with sendfile(2), which does not copy it through
// this program. It leaves to run what it cannot send, with the errors of that.
func (s *sender) sendFile(file *os.File) error {
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	conn, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	for sent := error(nil); sent == nil; {
		if err := s.client.writeBy(s.conn); err != nil {
			return err
		}
		err := conn.Write(func(fd uintptr) bool {
			n, sent = unix.Sendfile(int(fd), int(file.Fd()), nil, 1<<20)
			s.sent.Add(int64(max(n, 0)))
			return sent != unix.EAGAIN
		})
		if err != nil || n == 0 {
			return err
		}
	}
	return nil
}

// stop ends the sending after an error of the connection.
func (s *sender) stop(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.fail(s.client.unread())
	}
}

func (s *sender) fail(err error) {
	s.bad.Store(&err)
	_ = s.conn.Close()
}

// writeBy sets a deadline for the next send if no due echo bounds the wait:
// the server may never read.
func (c *Client) writeBy(conn *sock.Conn) error {
	if !c.NoEcho || c.Timeout == 0 {
		return nil
	}
	return conn.SetWriteDeadline(time.Now().Add(c.Timeout))
}

// unread returns the error of a send that writeBy has ended.
func (c *Client) unread() error {
	return fmt.Errorf("the server has not read for %v; is it paused or overloaded?", c.Timeout)
}

func (s *sender) err() error {
	if err := s.bad.Load(); err != nil {
		return *err
	}
	return nil
}
