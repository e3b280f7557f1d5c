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
	t := transfer{in: bytes.NewReader(message), out: out, length: int64(len(message)), level: zerolog.InfoLevel}
	if !c.NoEcho || len(message) > 0 || addr.TypeOf(conn).Messages() {
		c.Log.Info().Int("bytes", len(message)).Msg("sending " + logtext.Quote(message))
		t.toEnd = c.NoEcho
	}
	return c.transfer(ctx, conn, t)
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
	return c.transfer(ctx, conn, transfer{in: &input{Reader: in}, out: out, toEnd: true, size: c.Chunk, level: zerolog.DebugLevel})
}

// A transfer is what a client sends and receives.
type transfer struct {
	in     io.Reader
	out    io.Writer
	size   int   // of a message in bytes; 0: a line each, or all of the input is one
	toEnd  bool  // over a stream: end the direction after the input, and receive to the end of the other
	length int64 // of the input in bytes, if not toEnd
	level  zerolog.Level
}

// An input names itself in its errors. It is not read again after its end: a
// terminal would wait for another Ctrl-D.
type input struct {
	io.Reader
	err error
}

func (in *input) Read(p []byte) (n int, err error) {
	if in.err == nil {
		n, in.err = in.Reader.Read(p)
	}
	if in.err != nil && in.err != io.EOF {
		return n, fmt.Errorf("read the input: %w", in.err)
	}
	return n, in.err
}

// An exchange is a transfer over one connection.
type exchange struct {
	*Client
	transfer
	conn     *sock.Conn
	kind     addr.Type
	buf      []byte         // for a stream
	receiver *sock.Receiver // for the other types
	sizes    chan int       // of the messages in flight
	sent     atomic.Int64   // bytes of a stream
	answered atomic.Bool
	done     atomic.Bool // all is sent, or with NoEcho no more can be
	got      int64       // bytes of a stream, or messages
}

func (c *Client) exchange(ctx context.Context, conn *sock.Conn, t transfer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	e := &exchange{Client: c, transfer: t, conn: conn, kind: addr.TypeOf(conn)}
	// One less than the window, as the receiver takes one out before it waits
	// for the reply.
	e.sizes = make(chan int, max(c.Window, 1)-1)
	send, receive := e.sendBytes, e.receiveBytes
	if e.kind.Messages() {
		send, receive = e.sendMessages, e.receiveMessages
		e.receiver = sock.NewReceiver(sock.MaxMessage())
	} else {
		size := copyChunk
		if !t.toEnd && !c.NoEcho {
			size = messageChunk
		}
		e.buf = make([]byte, cmp.Or(c.Chunk, size))
	}
	if c.NoEcho {
		receive = e.receiveAny
	}
	if !c.NoEcho && !t.toEnd && t.length > 0 {
		hint := time.AfterFunc(hintAfter, func() {
			if !e.answered.Load() {
				c.Log.Warn().Msgf("no answer for %v: the server may not be an echo server, or be paused; uds send talks to any server, and --timeout ends the wait", hintAfter)
			}
		})
		defer hint.Stop()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(e.sizes)
		err := send(ctx)
		if err != nil && err != errClosed { // for errClosed the receiver reports what was due
			cancel(err)
		}
		e.done.Store(err == nil || c.NoEcho)
		if err == nil && t.toEnd && (c.NoEcho || !e.kind.Messages()) && e.kind.Connects() {
			_ = conn.CloseWrite()
		}
	}()
	err := receive(ctx)
	if err == nil && c.NoEcho && !conn.Closed() {
		select { // the server has ended its own direction first, and still reads
		case <-ended:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// hintAfter is how long a message waits for its echo before the client says what
// may be wrong.
const hintAfter = 3 * time.Second

// writeBy sets a deadline for the next send if no due echo bounds the wait:
// the server may never read.
func (e *exchange) writeBy() error {
	if !e.NoEcho || e.Timeout == 0 {
		return nil
	}
	return e.conn.SetWriteDeadline(time.Now().Add(e.Timeout))
}

// unsent returns the error of a send, errClosed if the receiver notices it
// itself: the server may still send after it stops reading.
func (e *exchange) unsent(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the server has not read for %v; is it paused or overloaded?", e.Timeout)
	case !e.kind.Messages(), e.NoEcho && errors.Is(err, unix.EPIPE), !e.NoEcho && e.kind == addr.Seqpacket && isGone(err):
		return errClosed
	}
	return err
}

// isGone reports whether the server has closed the connection, after it read
// everything (EPIPE) or before (ECONNRESET).
func isGone(err error) bool { return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) }

// receive waits for a message, or for bytes of a stream.
func (e *exchange) receive(patience time.Duration) ([]byte, error) {
	if patience > 0 {
		if err := e.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
	}
	if e.receiver != nil {
		return e.conn.Receive(e.receiver)
	}
	n, err := e.conn.Read(e.buf)
	return e.buf[:n], err
}

func (e *exchange) received(p []byte) error {
	e.answered.Store(true)
	if e.Log.GetLevel() <= e.level {
		e.Log.WithLevel(e.level).Int("bytes", len(p)).Msg("received " + logtext.Quote(p))
	}
	if _, err := e.out.Write(p); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// anyPatience is how long a silence over datagrams, which have no end, counts
// as the end without a timeout.
const anyPatience = time.Second

// receiveAny receives until the server ends the connection or, once the input
// has been sent, is silent for too long.
func (e *exchange) receiveAny(context.Context) error {
	patience := e.Timeout
	if !e.kind.Connects() {
		patience = cmp.Or(patience, anyPatience)
	}
	for reset := false; ; {
		done := e.done.Load()
		p, err := e.receive(patience)
		switch {
		case err == nil:
			e.got++
			if err := e.received(p); err != nil {
				return err
			}
		case errors.Is(err, os.ErrDeadlineExceeded) && !done:
		case errors.Is(err, unix.ECONNRESET): // comes once, before the records that the server has sent
			reset = true
		case errors.Is(err, io.EOF) && reset && e.got == 0:
			return errUnread
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("receive: %w", err)
		}
	}
}

// errUnread is ECONNRESET for a client that expects nothing and has received
// nothing.
var errUnread = errors.New("the server closed the connection without an answer, and without reading everything that was sent")

// errClosed means that a connection ended before the whole echo was received.
var errClosed = errors.New("the server closed the connection")

// whyAtOnce returns the likely reason why a server closes before it has
// answered.
func whyAtOnce(got int64) string {
	if got > 0 {
		return ""
	}
	return fmt.Sprintf("; it may be at its connection limit, or deny %s", whoAmI())
}

func whoAmI() string { return fmt.Sprintf("uid %d gid %d", os.Geteuid(), os.Getegid()) }
