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

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

func (e *exchange) sendMessages(ctx context.Context) error {
	for next := e.messages(); ; {
		message, err := next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if !e.NoEcho {
			select {
			case e.sizes <- len(message):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err = e.writeBy(); err == nil {
			err = e.conn.Send(message)
		}
		if err != nil {
			return e.unsent(err)
		}
	}
}

// messages returns a function that returns the next message of the input, and
// io.EOF after the last one. A message may be larger than a socket can send;
// sending it returns the error.
func (e *exchange) messages() func() ([]byte, error) {
	limit := sock.MaxMessage() + 1
	switch {
	case e.size > 0:
		buf := make([]byte, e.size)
		return func() ([]byte, error) {
			n, err := io.ReadFull(e.in, buf)
			if err == io.ErrUnexpectedEOF {
				err = nil
			}
			return buf[:n], err
		}
	case e.Lines:
		lines := bufio.NewReaderSize(e.in, limit)
		return func() ([]byte, error) {
			line, err := lines.ReadSlice('\n')
			if err == bufio.ErrBufferFull || err == io.EOF && len(line) > 0 {
				err = nil
			}
			return line, err
		}
	default:
		ended := error(nil)
		return func() ([]byte, error) {
			if ended != nil {
				return nil, ended
			}
			ended = io.EOF
			return io.ReadAll(io.LimitReader(e.in, int64(limit)))
		}
	}
}

func (e *exchange) receiveMessages(ctx context.Context) error {
	patience := e.Timeout
	resumes := e.Redial != nil && e.kind == addr.Datagram
	if resumes {
		patience = cmp.Or(patience, resumePatience)
	}
	for {
		var size int
		select {
		case <-ctx.Done(): // the sender may wait for its input
			return nil
		case next, ok := <-e.sizes:
			if !ok {
				return nil
			}
			size = next
		}
		message, err := e.receive(patience)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && resumes:
			return errSilent
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("no answer for %v: received %d messages; is the server paused or overloaded?", patience, e.got)
		case errors.Is(err, io.EOF), e.kind == addr.Seqpacket && isGone(err):
			return fmt.Errorf("received %d messages, but not the next one of %d bytes, before %w%s", e.got, size, errClosed, whyAtOnce(e.got))
		default:
			return fmt.Errorf("receive: %w", err)
		}
		if e.kind == addr.Datagram && bytes.Equal(message, server.Refusal(size)) {
			return fmt.Errorf("the server rejected the message of %d bytes: it denies %s", size, whoAmI())
		}
		if len(message) != size {
			return fmt.Errorf("a message of %d bytes was answered with %d bytes; the server is not an echo server", size, len(message))
		}
		e.got++
		if err := e.received(message); err != nil {
			return err
		}
	}
}
