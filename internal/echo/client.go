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

	"github.com/udsecho/udsecho/internal/uds"
)

// A Client sends and takes back what it sent.
type Client struct {
	Chunk   int           // size of one receive on a stream, or of one message of Copy, in bytes; 0: see Copy
	Window  int           // messages that may be on their way, of the types that keep boundaries; 0: one
	Timeout time.Duration // the longest wait for bytes that are due; 0: no limit
	Log     zerolog.Logger
}

// Message sends message and writes to out what comes back: of a stream until it
// is as long as the message, of the other types one message.
func (c *Client) Message(ctx context.Context, conn *uds.Conn, message []byte, out io.Writer) error {
	c.Log.Info().Int("bytes", len(message)).Msg("sending " + Quote(message))
	if conn.Type().Messages() {
		return c.messages(ctx, conn, bytes.NewReader(message), 0, out, zerolog.InfoLevel)
	}
	return c.exchange(ctx, conn, bytes.NewReader(message), out, int64(len(message)), zerolog.InfoLevel)
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
// one where Chunk is 0.
func (c *Client) Copy(ctx context.Context, conn *uds.Conn, in io.Reader, out io.Writer) error {
	c.Log.Info().Msg("sending standard input")
	if conn.Type().Messages() {
		return c.messages(ctx, conn, in, c.Chunk, out, zerolog.DebugLevel)
	}
	return c.exchange(ctx, conn, in, out, -1, zerolog.DebugLevel)
}

// streamChunk is the size of one receive where none is given: the source's.
const streamChunk = 16

// exchange receives want bytes, or to the end where want is negative.
func (c *Client) exchange(ctx context.Context, conn *uds.Conn, in io.Reader, out io.Writer, want int64, level zerolog.Level) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	s := &sender{conn: conn, in: in, end: want < 0}
	go s.run()

	got, err := c.receive(s, out, want, level)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if inErr := s.inputError(); inErr != nil {
		return fmt.Errorf("read the input: %w", inErr)
	}
	if err != nil {
		return err
	}
	if short := got < want || want < 0 && (!s.done.Load() || got < s.sent.Load()); short {
		return fmt.Errorf("the server closed the connection: %d bytes are back of %d sent", got, s.sent.Load())
	}
	return nil
}

func (c *Client) receive(s *sender, out io.Writer, want int64, level zerolog.Level) (got int64, err error) {
	buf := make([]byte, cmp.Or(c.Chunk, streamChunk))
	for got != want {
		due := s.done.Load() || s.sent.Load() != got
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
				c.Log.WithLevel(level).Int("bytes", n).Msg("received " + Quote(part[:n]))
			}
			got += int64(n)
			if _, err := out.Write(part[:n]); err != nil {
				return got, fmt.Errorf("write the output: %w", err)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !due: // nothing was owed
		case errors.Is(err, os.ErrDeadlineExceeded):
			return got, fmt.Errorf("no answer for %v: %d bytes are back of %d sent: is the server paused or overloaded?",
				c.Timeout, got, s.sent.Load())
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			// ECONNRESET is end of file too, of a server that had not read all.
			return got, nil
		default:
			return got, fmt.Errorf("receive: %w", err)
		}
	}
	return got, nil
}

// sender is the direction to the server.
type sender struct {
	conn *uds.Conn
	in   io.Reader
	end  bool // end the direction after the input
	sent atomic.Int64
	done atomic.Bool // all of the input has been sent
	bad  atomic.Pointer[error]
}

// run copies the input to the connection. Where the input fails it closes the
// connection, which ends the receiver; where the connection fails, the receiver
// sees that itself.
func (s *sender) run() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.in.Read(buf)
		if n > 0 {
			s.sent.Add(int64(n)) // before, so that what comes back was never not sent
			if _, err := s.conn.Write(buf[:n]); err != nil {
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
			s.bad.Store(&err)
			_ = s.conn.Close()
			return
		}
	}
}

func (s *sender) inputError() error {
	if err := s.bad.Load(); err != nil {
		return *err
	}
	return nil
}

// HealthCheck does one echo round trip with the server at a and tells why it
// failed. The client's name marks it for the server, which does not mention it
// at info level, see [Server].
func HealthCheck(ctx context.Context, a uds.Addr) error {
	conn, err := uds.DialConfig{Bind: HealthName + uds.AutoName("")}.Dial(ctx, a)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	sent := []byte("are you well?")
	var back bytes.Buffer
	client := Client{Log: zerolog.Nop()}
	if err := client.Message(ctx, conn, sent, &back); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return fmt.Errorf("health check of %s: connected, but no echo in time: the server is paused or overloaded", a)
		}
		return fmt.Errorf("health check of %s: %w", a, err)
	}
	if !bytes.Equal(back.Bytes(), sent) {
		return fmt.Errorf("health check of %s: sent %s, got back %s: that is no echo server", a, Quote(sent), Quote(back.Bytes()))
	}
	return nil
}
