package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// ClientFlags are those of a command that is a [Client]. Where the commands
// differ, their help has variables.
type ClientFlags struct {
	Connect addr.Addr     `default:"stream:./uds_socket" placeholder:"ADDR" help:"The server: stream:PATH (or just PATH), datagram:PATH, seqpacket:PATH or tcp:HOST:PORT. A PATH of the form @NAME is an abstract name."`
	Bind    string        `placeholder:"NAME" help:"The name of the client's own socket: none, auto (beside the server's socket), DIR/ (the same in DIR) or a path. A datagram server answers to it (default: none, but auto for datagram)."`
	Retry   time.Duration `default:"0s" placeholder:"DURATION" help:"Keep trying for this long if there is no server yet.${retry}"`
	Timeout time.Duration `default:"0s" placeholder:"DURATION" help:"${timeout}"`
	Chunk   int           `placeholder:"BYTES" help:"Size of one receive on a stream; on the other types, of one message of - (default: ${chunk}; one message for all of the input)."`
	Sndbuf  int           `placeholder:"BYTES" help:"Send buffer (SO_SNDBUF); a message may be 32 bytes less (default: the system's, but for - over a stream 2097152, or as much as the system allows)."`
	cli.RequireFlags
	cli.LogFlags
}

// ValidateFor rejects values that make no sense.
func (f *ClientFlags) ValidateFor(noEcho bool) error {
	switch {
	case f.Connect.Type == addr.Files:
		return fmt.Errorf("--connect %s: this address takes files, not bytes; use client send-file or client share", f.Connect)
	case f.Chunk < 0 || f.Chunk > 16<<20:
		return fmt.Errorf("--chunk %d: choose from 1 to %d bytes, or 0 for the default", f.Chunk, 16<<20)
	case f.Sndbuf < 0 || f.Sndbuf > 1<<30:
		return fmt.Errorf("--sndbuf %d: choose from 0 to %d bytes", f.Sndbuf, 1<<30)
	case f.Retry < 0:
		return fmt.Errorf("--retry %v: choose 0s or more", f.Retry)
	case f.Timeout < 0:
		return fmt.Errorf("--timeout %v: choose 0s or more", f.Timeout)
	case f.Bind == "none" && f.Connect.Type == addr.Datagram && !noEcho:
		return errors.New("--bind none: a datagram client without a name cannot be answered; choose auto, DIR/ or a path, or use uds send")
	}
	return f.RequireFlags.ValidateFor(f.Connect.Type)
}

// Talk connects, sends a message, or for - standard input, and writes what it
// receives to out. c has what the flags do not say.
func (f *ClientFlags) Talk(ctx context.Context, std cli.Std, c Client, message string, out io.Writer) error {
	if cli.IsTerminal(std.Out) && cli.IsTerminal(std.Err) {
		open := new(atomic.Bool)
		out, std.Err = screen{out, open, false}, screen{std.Err, open, true}
	}
	log := f.Logger(std.Err)
	log.Info().Str("connect", logtext.Escape(f.Connect.String())).Msg("connecting to " + logtext.Escape(f.Connect.Path))
	name := cli.OwnName(f.Bind, f.Connect)
	dial := func(ctx context.Context, name string) (*sock.Conn, error) {
		conn, err := f.Dial(ctx, f.Connect, sock.DialConfig{Bind: name, SendBuffer: f.Sndbuf}, f.Retry)
		if err == nil && message == "-" && f.Sndbuf == 0 && f.Connect.Type == addr.Stream {
			// The kernel wakes a sender only when three quarters of its buffer
			// are free. With a small buffer both ends sleep often.
			conn.GrowSendBuffer(2 << 20)
		}
		return conn, err
	}
	conn, err := dial(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()

	typed := message == "-" && cli.IsTerminal(std.In)
	if typed {
		what := "lines go as typed"
		if f.Connect.Type.Messages() && f.Chunk == 0 {
			what = "one line a message"
		}
		log.Info().Msg(what + "; Ctrl-D ends")
	}
	c.Chunk, c.Timeout, c.Lines, c.Log = f.Chunk, f.Timeout, typed, log
	if f.Retry > 0 && !c.NoEcho {
		c.Patience = f.Retry
		c.Redial = func(ctx context.Context) (*sock.Conn, error) { return dial(ctx, cli.NextName(name, f.Connect.Type)) }
	}
	if message == "-" {
		err = c.Copy(ctx, conn, std.In, out)
	} else {
		err = c.Message(ctx, conn, []byte(message), out)
	}
	if typed && ctx.Err() != nil {
		err = nil // Ctrl-C is one way to end typed input
	}
	if err == nil {
		log.Info().Msg("closing socket")
	}
	return err
}

// A screen shows output and events on one terminal, where an event begins a new
// line.
type screen struct {
	io.Writer
	open   *atomic.Bool // the last line has no end yet
	events bool
}

func (s screen) Write(p []byte) (int, error) {
	if s.events && s.open.Swap(false) {
		fmt.Fprintln(s.Writer)
	}
	n, err := s.Writer.Write(p)
	if n > 0 {
		s.open.Store(p[n-1] != '\n')
	}
	return n, err
}
