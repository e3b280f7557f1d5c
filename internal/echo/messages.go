package echo

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// defaultPatience is how long a client waits without a given timeout. Over
// UDP, a message without an echo then counts as lost. If no echo is due, over
// UDP and datagrams, silence then counts as the end.
const defaultPatience = time.Second

// messages sends in as messages of size bytes, or as one message if size is 0.
// It receives one message for each or, with NoEcho, any message.
func (c *Client) messages(ctx context.Context, conn *sock.Conn, in io.Reader, size int, out io.Writer, level zerolog.Level) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()

	// The sizes of the messages in flight. The channel holds one less than the
	// window, as the receiver takes one out before it waits for the reply.
	sizes := make(chan int, max(c.Window, 1)-1)
	sent := make(chan struct{})
	r := &replies{client: c, conn: conn, receiver: sock.NewReceiver(sock.MaxMessage()), out: out, level: level}
	go func() {
		defer close(sizes)
		defer close(sent)
		err := c.sendMessages(ctx, conn, in, size, sizes)
		if c.NoEcho {
			if addr.TypeOf(conn) == addr.Seqpacket {
				_ = conn.CloseWrite()
			}
			if errors.Is(err, unix.EPIPE) {
				return // the server may still send; if not, the receiver notices
			}
		}
		if err != nil && err != errClosed { // for errClosed the receiver reports what was due
			cancel(err)
		}
	}()
	var err error
	if c.NoEcho {
		if err = r.receiveAll(sent); err == nil {
			awaitSent(ctx, conn, sent)
		}
	} else {
		err = r.receive(ctx, sizes)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil && r.lost > 0 {
		err = fmt.Errorf("%d of %d messages were not echoed", r.lost, r.lost+r.got)
	}
	return err
}

func (c *Client) sendMessages(ctx context.Context, conn *sock.Conn, in io.Reader, size int, sizes chan<- int) error {
	send := func(message []byte) error {
		if c.NoEcho {
			err := c.writeBy(conn)
			if err == nil {
				err = conn.Send(message)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = c.unread()
			}
			return err
		}
		select {
		case sizes <- len(message):
			err := conn.Send(message)
			if addr.TypeOf(conn) == addr.Seqpacket && isGone(err) {
				err = errClosed // an error of the input is not errClosed
			}
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if size == 0 && c.Lines {
		// A line that fills the buffer is larger than any message; sending it
		// returns the error.
		for lines := bufio.NewReaderSize(in, sock.MaxMessage()+1); ; {
			line, err := lines.ReadSlice('\n')
			if len(line) > 0 {
				if err := send(line); err != nil {
					return err
				}
			}
			switch err {
			case nil, bufio.ErrBufferFull:
			case io.EOF:
				return nil
			default:
				return fmt.Errorf("read the input: %w", err)
			}
		}
	}
	if size == 0 {
		message, err := io.ReadAll(io.LimitReader(in, int64(sock.MaxMessage())+1))
		if err != nil {
			return fmt.Errorf("read the input: %w", err)
		}
		return send(message)
	}
	buf := make([]byte, size)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		default:
			return fmt.Errorf("read the input: %w", err)
		}
	}
}

// isGone reports whether the server has closed the connection, after it read
// everything (EPIPE) or before (ECONNRESET).
func isGone(err error) bool { return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) }

// replies is the direction from the server.
type replies struct {
	client    *Client
	conn      *sock.Conn
	receiver  *sock.Receiver
	out       io.Writer
	level     zerolog.Level
	got, lost int
}

// receiveAll receives until the server ends the connection or, once the input
// has been sent, is silent for too long.
func (r *replies) receiveAll(sent <-chan struct{}) error {
	patience := r.client.Timeout
	if !addr.TypeOf(r.conn).Connects() {
		patience = cmp.Or(patience, defaultPatience)
	}
	reset := false
	for {
		due := false
		select {
		case <-sent:
			due = true
		default:
		}
		if patience > 0 {
			if err := r.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
		}
		message, err := r.conn.Receive(r.receiver)
		switch {
		case err == nil:
			if err := r.received(message); err != nil {
				return err
			}
		case errors.Is(err, os.ErrDeadlineExceeded) && !due:
		case errors.Is(err, unix.ECONNRESET): // comes once, before the records that the server has sent
			reset = true
		case errors.Is(err, io.EOF) && reset && r.got == 0:
			return errUnread
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("receive: %w", err)
		}
	}
}

func (r *replies) receive(ctx context.Context, sizes <-chan int) error {
	patience := r.client.Timeout
	resumes := r.client.Redial != nil && addr.TypeOf(r.conn) == addr.Datagram
	if resumes {
		patience = cmp.Or(patience, resumePatience)
	}
	isUDP := addr.TypeOf(r.conn) == addr.UDP
	if isUDP && patience == 0 {
		patience = defaultPatience
	}
	for {
		var size int
		select {
		case <-ctx.Done(): // the sender may wait for its input
			return nil
		case next, ok := <-sizes:
			if !ok {
				return nil
			}
			size = next
		}
		if patience > 0 {
			if err := r.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
		}
		message, err := r.conn.Receive(r.receiver)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && isUDP:
			// The messages in flight have had their time; messages that the
			// sender adds now have not.
			r.lost++
			for n := len(sizes); n > 0; n-- {
				<-sizes
				r.lost++
			}
			continue
		case errors.Is(err, os.ErrDeadlineExceeded) && resumes:
			return errSilent
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("no answer for %v: received %d messages; is the server paused or overloaded?", patience, r.got)
		case errors.Is(err, io.EOF), addr.TypeOf(r.conn) == addr.Seqpacket && isGone(err):
			return fmt.Errorf("received %d messages, but not the next one of %d bytes, before %w%s", r.got, size, errClosed, whyAtOnce(r.got))
		default:
			return fmt.Errorf("receive: %w", err)
		}
		if addr.TypeOf(r.conn) == addr.Datagram && bytes.Equal(message, server.Refusal(size)) {
			return fmt.Errorf("the server rejected the message of %d bytes: it denies %s", size, whoAmI())
		}
		if len(message) != size && !isUDP {
			return fmt.Errorf("a message of %d bytes was answered with %d bytes; the server is not an echo server", size, len(message))
		}
		if err := r.received(message); err != nil {
			return err
		}
	}
}

func (r *replies) received(message []byte) error {
	r.got++
	if r.client.Log.GetLevel() <= r.level {
		r.client.Log.WithLevel(r.level).Int("bytes", len(message)).Msg("received " + logtext.Quote(message))
	}
	if _, err := r.out.Write(message); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}
