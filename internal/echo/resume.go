package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// resumePatience is how long a datagram client that may connect again waits
// for a reply before it does so.
const resumePatience = 2 * time.Second

var errSilent = errors.New("no answer: the server may have ended")

// broken reports whether err is the end of a connection after which the
// transfer may continue over another one.
func broken(err error) bool {
	for _, end := range []error{errClosed, errSilent, unix.EPIPE, unix.ECONNRESET, unix.ECONNREFUSED, unix.ENOTCONN} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// transfer sends in and receives want bytes, or to the end if want is
// negative. Over the types that keep boundaries it sends messages of size
// bytes. If the connection breaks, it continues over another one, if Redial
// allows that.
func (c *Client) transfer(ctx context.Context, conn *sock.Conn, in io.Reader, out io.Writer, size int, want int64, level zerolog.Level) error {
	once := func(conn *sock.Conn, in io.Reader, out io.Writer, back int64) error {
		if addr.TypeOf(conn).Messages() {
			return c.messages(ctx, conn, in, size, out, level)
		}
		rest := want
		if want > 0 {
			rest = want - back
		}
		return c.exchange(ctx, conn, in, out, rest, level)
	}
	if c.Redial == nil || c.NoEcho || addr.TypeOf(conn) == addr.UDP { // UDP loses messages, and resuming needs all of them
		return once(conn, in, out, 0)
	}
	// A message is sent once all of it is read, so the tape must hold at least
	// one message, and one byte more to notice a message that is too large.
	t := newTape(in, max(maxKept, size, sock.MaxMessage()+1))
	defer t.rewound() // otherwise a reader that waits for room would wait for ever
	w := &acknowledger{out: out, tape: t}
	wait := backoff.NewExponentialBackOff() // with jitter, so that many clients do not come back at the same moment
	wait.InitialInterval, wait.MaxInterval = 10*time.Millisecond, time.Second
	defer func() { _ = conn.Close() }()
	var failing time.Time // when a connection first broke, with no bytes received since
	for {
		before, began := w.back, time.Now()
		err := once(conn, t.rewound(), w, before)
		due, end := t.state()
		switch {
		case w.err != nil:
			return w.err
		case err == nil || ctx.Err() != nil || !broken(err) || end != nil && end != io.EOF:
			return err
		case !due && end == io.EOF && w.back > 0:
			return nil // the whole echo was received
		// A connection over which nothing had to be sent is good if it lasts.
		case w.back > before || !due && time.Since(began) > c.Patience:
			failing = time.Time{}
			wait.Reset()
		}
		if failing.IsZero() {
			failing = time.Now()
		}
		if time.Since(failing) > c.Patience {
			return fmt.Errorf("%w (tried for %v)", err, c.Patience)
		}
		c.Log.Warn().Err(err).Int64("bytes", w.back).Msgf("connecting again: %v", err)
		_ = conn.Close()
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		another, err := c.Redial(ctx)
		if err != nil {
			return err
		}
		conn = another
	}
}

// errNoEcho means that the received bytes are not the echo of the sent bytes.
var errNoEcho = errors.New("the received bytes are not the echo of the sent bytes; the server is not an echo server")

// An acknowledger writes the echo, and makes the tape forget it.
type acknowledger struct {
	out  io.Writer
	tape *tape
	back int64
	err  error // not an error of the connection
}

func (a *acknowledger) Write(p []byte) (int, error) {
	if !a.tape.expects(p) {
		a.err = errNoEcho
		return 0, a.err
	}
	n, err := a.out.Write(p)
	a.tape.forget(n)
	a.back += int64(n)
	if err != nil {
		a.err = fmt.Errorf("write the output: %w", err)
	}
	return n, a.err
}
