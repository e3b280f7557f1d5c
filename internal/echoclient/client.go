// Package echoclient is the client's side of the echo: it sends, takes back what it
// sent, and goes on where a connection broke.
package echoclient

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

	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
)

// A Client sends and takes back what it sent.
type Client struct {
	Chunk   int           // size of one receive on a stream, or of one message of Copy, in bytes; 0: see Copy
	Window  int           // messages that may be on their way, of the types that keep boundaries; 0: one
	Timeout time.Duration // the longest wait for bytes that are due; 0: no limit
	NoEcho  bool          // the server may answer anything, or nothing: see Message and Copy
	Lines   bool          // Copy sends each line as a message of its own, where Chunk is 0
	// Redial connects again where a transfer has broken, which then goes on with
	// what has not come back; nil: it fails. It is given up once nothing has come
	// back for Patience. Over datagrams, where nothing tells that the server has
	// ended, a silence of Timeout, or 2 s, is taken for it. Not with NoEcho.
	Redial   func(context.Context) (*transport.Conn, error)
	Patience time.Duration
	Log      zerolog.Logger
}

// Message sends message and writes to out what comes back: of a stream until it
// is as long as the message, of the other types one message.
//
// With NoEcho, it ends its own direction instead, and writes what comes until
// the server has ended the other, or is silent for Timeout. A type without
// connections has no such end: there a silence of 1 s will do. An empty message
// is not sent over a stream, and nothing is ended there: the client listens.
func (c *Client) Message(ctx context.Context, conn *transport.Conn, message []byte, out io.Writer) error {
	if c.NoEcho && len(message) == 0 && !conn.Type().Messages() {
		return c.exchange(ctx, conn, nil, out, -1, zerolog.InfoLevel)
	}
	c.Log.Info().Int("bytes", len(message)).Msg("sending " + transcript.Quote(message))
	want := int64(len(message))
	if c.NoEcho {
		want = -1
	}
	return c.transfer(ctx, conn, bytes.NewReader(message), out, 0, want, zerolog.InfoLevel)
}

// Copy sends in to its end and writes to out what comes back. Single chunks and
// messages are events of debug level, as there may be millions.
//
// Over a stream it reads while it writes: a client that wrote everything first
// would block as soon as the buffers in both directions are full, while the
// server, which cannot send, has stopped receiving. It then ends its own
// direction and reads to the end of the server's.
//
// Over the other types it sends messages of Chunk bytes, or all of the input as
// one where Chunk is 0. NoEcho is as for Message.
func (c *Client) Copy(ctx context.Context, conn *transport.Conn, in io.Reader, out io.Writer) error {
	c.Log.Info().Msg("sending standard input")
	return c.transfer(ctx, conn, in, out, c.Chunk, -1, zerolog.DebugLevel)
}

// streamChunk is the size of one receive where none is given: the source's.
const streamChunk = 16

// exchange receives want bytes, or to the end where want is negative; without an
// input it only receives.
func (c *Client) exchange(ctx context.Context, conn *transport.Conn, in io.Reader, out io.Writer, want int64, level zerolog.Level) error {
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
		return fmt.Errorf("%w: %d bytes are back of %d sent%s", errClosed, got, s.sent.Load(), whyAtOnce(got))
	}
	return nil
}

// errClosed is a connection that ended before all had come back.
var errClosed = errors.New("the server closed the connection")

// whyAtOnce is what it may mean that a server closes before it has answered.
func whyAtOnce[N int | int64](got N) string {
	if got > 0 {
		return ""
	}
	return fmt.Sprintf(": it may be full, or not let this process in, which is %s", whoAmI())
}

func whoAmI() string { return fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid()) }

func (c *Client) receive(s *sender, out io.Writer, want int64, level zerolog.Level) (got int64, err error) {
	buf := make([]byte, cmp.Or(c.Chunk, streamChunk))
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
				c.Log.WithLevel(level).Int("bytes", n).Msg("received " + transcript.Quote(part[:n]))
			}
			got += int64(n)
			if _, err := out.Write(part[:n]); err != nil {
				return got, fmt.Errorf("write the output: %w", err)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !due: // nothing was owed
		case errors.Is(err, os.ErrDeadlineExceeded) && c.NoEcho:
			return got, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return got, fmt.Errorf("no answer for %v: %d bytes are back of %d sent: is the server paused or overloaded?",
				c.Timeout, got, s.sent.Load())
		case c.NoEcho && got == 0 && errors.Is(err, unix.ECONNRESET):
			return got, errUnread
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			// ECONNRESET is end of file too, of a server that had not read all.
			return got, nil
		default:
			return got, fmt.Errorf("receive: %w", err)
		}
	}
	return got, nil
}

// awaitSent lets the input be sent to a server that has ended its own direction
// first, and still reads.
func awaitSent(ctx context.Context, conn *transport.Conn, sent <-chan struct{}) {
	if conn.Closed() {
		return
	}
	select {
	case <-sent:
	case <-ctx.Done():
	}
}

// errUnread is ECONNRESET for a client to which nothing is owed, and nothing came.
var errUnread = errors.New("the server closed the connection without an answer, and without reading all that was sent")

// sender is the direction to the server.
type sender struct {
	client *Client
	conn   *transport.Conn
	in     io.Reader
	end    bool // end the direction after the input
	sent   atomic.Int64
	done   atomic.Bool // all of the input has been sent
	bad    atomic.Pointer[error]
}

// run copies the input to the connection. Where the input fails it closes the
// connection, which ends the receiver; where the connection fails, the receiver
// sees that itself.
func (s *sender) run() {
	if s.client.NoEcho {
		defer s.done.Store(true) // the server may go on sending when it reads no more
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := s.in.Read(buf)
		if n > 0 {
			s.sent.Add(int64(n)) // before, so that what comes back was never not sent
			err := s.client.writeBy(s.conn)
			if err == nil {
				_, err = s.conn.Write(buf[:n])
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				s.fail(s.client.unread())
			}
			if err != nil {
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

func (s *sender) fail(err error) {
	s.bad.Store(&err)
	_ = s.conn.Close()
}

// writeBy bounds the next send where nothing that is owed does: the server may
// be one that never reads.
func (c *Client) writeBy(conn *transport.Conn) error {
	if !c.NoEcho || c.Timeout == 0 {
		return nil
	}
	return conn.SetWriteDeadline(time.Now().Add(c.Timeout))
}

// unread is the error of a send that writeBy has ended.
func (c *Client) unread() error {
	return fmt.Errorf("the server has not read for %v: is it paused or overloaded?", c.Timeout)
}

func (s *sender) err() error {
	if err := s.bad.Load(); err != nil {
		return *err
	}
	return nil
}
