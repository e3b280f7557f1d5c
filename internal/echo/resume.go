package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
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

// transfer sends and receives t. If the connection breaks, it continues over
// another one, if Redial allows that.
func (c *Client) transfer(ctx context.Context, conn *sock.Conn, t transfer) error {
	if c.Redial == nil || c.NoEcho {
		return c.exchange(ctx, conn, t)
	}
	// A message is sent once all of it is read, so the tape must hold at least
	// one message, and one byte more to notice a message that is too large.
	in := newTape(t.in, max(maxKept, t.size, sock.MaxMessage()+1))
	defer in.rewound() // otherwise a reader that waits for room would wait for ever
	out := &acknowledger{out: t.out, tape: in}
	wait := cli.NewBackOff()
	defer func() { _ = conn.Close() }()
	var failing time.Time // when a connection first broke, with no bytes received since
	for {
		before, began := out.back, time.Now()
		rest := t
		rest.in, rest.out, rest.length = in.rewound(), out, t.length-before
		err := c.exchange(ctx, conn, rest)
		due, end := in.state()
		switch {
		case out.err != nil:
			return out.err
		case err == nil || ctx.Err() != nil || !broken(err) || end != nil && end != io.EOF:
			return err
		case !due && end == io.EOF && out.back > 0:
			return nil // the whole echo was received
		// A connection over which nothing had to be sent is good if it lasts.
		case out.back > before || !due && time.Since(began) > c.Patience:
			failing = time.Time{}
			wait.Reset()
		}
		if failing.IsZero() {
			failing = time.Now()
		}
		if time.Since(failing) > c.Patience {
			return fmt.Errorf("%w (tried for %v)", err, c.Patience)
		}
		c.Log.Warn().Err(err).Int64("bytes", out.back).Msgf("connecting again: %v", err)
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
