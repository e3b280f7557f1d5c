//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

type messageArg struct {
	Message string `arg:"" optional:"" default:"This is the message.  It will be repeated." help:"What to send (default: a message of 42 bytes)."`
}

type echoCmd struct {
	messageArg
	Connect addr.Addr     `default:"stream:./uds_socket" placeholder:"ADDR" help:"The server: stream:PATH (or just PATH), datagram:PATH, seqpacket:PATH or tcp:HOST:PORT. A PATH of the form @NAME is an abstract name."`
	Bind    string        `placeholder:"NAME" help:"The name of the client's own socket: none, auto (beside the server's socket), DIR/ (the same in DIR) or a path. A datagram server answers to it (default: none, but auto for datagram)."`
	Retry   time.Duration `default:"0s" placeholder:"DURATION" help:"Keep trying for this long if there is no server yet. If the connection breaks, continue over a new one."`
	Timeout time.Duration `default:"0s" placeholder:"DURATION" help:"The longest wait for an echo; 0s: no limit."`
	Chunk   int           `placeholder:"BYTES" help:"Size of one receive on a stream; on the other types, of one message of - (default: 16, or 65536 for - and --no-echo; one message for all of the input)."`
	Window  int           `default:"8" placeholder:"N" help:"Messages of - that may be in flight, on types other than stream."`
	NoEcho  bool          `help:"Expect no echo: send, then print everything until the server ends, or is silent for --timeout."`
	Hex     bool          `help:"Print the received bytes as a hex dump."`
	Sndbuf  int           `placeholder:"BYTES" help:"Send buffer (SO_SNDBUF); a message may be 32 bytes less (default: the system's, but for - over a stream 2097152, or as much as the system allows)."`
	requireFlags
	cli.LogFlags
}

// Validate rejects values that make no sense.
func (c *echoCmd) Validate() error {
	switch {
	case c.Connect.Type == addr.Files:
		return fmt.Errorf("--connect %s: this address takes files, not bytes; use client send-file or client share", c.Connect)
	case c.Chunk < 0 || c.Chunk > 16<<20:
		return fmt.Errorf("--chunk %d: choose from 1 to %d bytes, or 0 for the default", c.Chunk, 16<<20)
	case c.Window < 1 || c.Window > 1000:
		return fmt.Errorf("--window %d: choose from 1 to 1000 messages, as many as the server keeps for a client", c.Window)
	case c.Sndbuf < 0 || c.Sndbuf > 1<<30:
		return fmt.Errorf("--sndbuf %d: choose from 0 to %d bytes", c.Sndbuf, 1<<30)
	case c.Retry < 0:
		return fmt.Errorf("--retry %v: choose 0s or more", c.Retry)
	case c.Timeout < 0:
		return fmt.Errorf("--timeout %v: choose 0s or more", c.Timeout)
	case c.Bind == "none" && c.Connect.Type == addr.Datagram && !c.NoEcho:
		return errors.New("--bind none: a datagram client without a name cannot be answered; choose auto, DIR/ or a path, or --no-echo")
	}
	return c.validate(c.Connect.Type)
}

// Run sends and receives the echo.
func (c *echoCmd) Run(ctx context.Context, std cli.Std) error {
	log := c.Logger(std.Err)
	log.Info().Str("connect", logtext.Escape(c.Connect.String())).Msg("connecting to " + logtext.Escape(c.Connect.Path))
	name := ownName(c.Bind, c.Connect)
	conn, err := c.dial(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()

	typed := c.Message == "-" && isTerminal(std.In)
	if typed {
		what := "lines go as typed"
		if c.Connect.Type.Messages() && c.Chunk == 0 {
			what = "one line a message"
		}
		log.Info().Msg(what + "; Ctrl-D ends")
	}
	out := io.WriteCloser(asIs{std.Out})
	if c.Hex {
		out = newDump(std.Out, c.Connect.Type.Messages())
	}
	client := echo.Client{Chunk: c.Chunk, Window: c.Window, Timeout: c.Timeout, NoEcho: c.NoEcho, Lines: typed, Log: log}
	if c.Retry > 0 {
		client.Patience = c.Retry
		client.Redial = func(ctx context.Context) (*sock.Conn, error) { return c.dial(ctx, nextName(name, c.Connect.Type)) }
	}
	if c.Message == "-" {
		err = client.Copy(ctx, conn, std.In, out)
	} else {
		err = client.Message(ctx, conn, []byte(c.Message), out)
	}
	if typed && ctx.Err() != nil {
		err = nil // Ctrl-C is one way to end typed input
	}
	if closeErr := out.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("write the output: %w", closeErr)
	}
	if err == nil {
		log.Info().Msg("closing socket")
	}
	return err
}

// dial connects, and binds the client's own name.
func (c *echoCmd) dial(ctx context.Context, name string) (*sock.Conn, error) {
	conn, err := c.dialRequired(ctx, c.Connect, sock.DialConfig{Bind: name, SendBuffer: c.Sndbuf}, c.Retry)
	if err == nil && c.Message == "-" && c.Sndbuf == 0 && c.Connect.Type == addr.Stream {
		// The kernel wakes a sender only when three quarters of its buffer
		// are free. With a small buffer both ends sleep often.
		conn.GrowSendBuffer(2 << 20)
	}
	return conn, err
}

// nextName returns the client's own name for another connection after name.
// Over datagrams it is a new name: what a slow server still sends to the old
// name is not an answer to a message sent under the new one.
func nextName(name string, t addr.Type) string {
	if name == "" || t != addr.Datagram {
		return name
	}
	return nameBeside(name)
}

// nameBeside returns a name in the directory of another; if that is abstract, an
// abstract one.
func nameBeside(name string) string {
	if strings.HasPrefix(name, "@") {
		return sock.AutoName("@")
	}
	return sock.AutoName(filepath.Dir(name))
}

// ownName returns the name of the client's own socket by --bind, "" for none.
// For a datagram socket it is absolute if that fits sun_path, as the server looks
// it up in its own directory.
func ownName(bind string, a addr.Addr) string {
	datagram := a.Type == addr.Datagram
	switch {
	case bind == "none" || bind == "" && !datagram || !a.Type.Unix():
		return ""
	case bind == "auto" || bind == "":
		bind = nameBeside(a.Path)
	case strings.HasSuffix(bind, "/"):
		bind = nameBeside(bind)
	}
	if abs, err := filepath.Abs(bind); datagram && bind[0] != '@' && err == nil && len(abs) <= sock.MaxPath {
		return abs
	}
	return bind
}

// dial connects. It tries again for as long as patience allows if no server is
// there yet: the path is missing or stale, or the backlog is full.
func dial(ctx context.Context, a addr.Addr, config sock.DialConfig, patience time.Duration) (*sock.Conn, error) {
	if patience == 0 {
		conn, err := addr.Dial(ctx, a, config)
		switch {
		case err != nil && ctx.Err() != nil:
			err = context.Cause(ctx)
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN):
			err = fmt.Errorf("%w (--retry waits for it)", err)
		}
		return conn, err
	}
	conn, err := backoff.Retry(ctx, func() (*sock.Conn, error) {
		conn, err := addr.Dial(ctx, a, config)
		if err != nil && !sock.NotThereYet(err) {
			err = backoff.Permanent(err)
		}
		return conn, err
	}, backoff.WithBackOff(echo.NewBackOff()), backoff.WithMaxElapsedTime(patience))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && sock.NotThereYet(err):
		return nil, fmt.Errorf("%w (tried for %v)", err, patience)
	}
	return conn, err
}

// requireFlags name the user and group that must run the server.
type requireFlags struct {
	RequireUID *uint32 `name:"require-uid" placeholder:"UID" help:"Send nothing to a server of another user; stream and seqpacket only."`
	RequireGID *uint32 `name:"require-gid" placeholder:"GID" help:"Send nothing to a server of another effective group; stream and seqpacket only."`
}

func (f requireFlags) validate(t addr.Type) error {
	if f != (requireFlags{}) && (!t.Unix() || !t.Connects()) {
		return fmt.Errorf("--require-uid, --require-gid: the kernel does not report the server's user for a %s socket; use stream or seqpacket", t)
	}
	return nil
}

// dialRequired is dial, but it rejects a server that is not the required one
// before a byte is sent to it.
func (f requireFlags) dialRequired(ctx context.Context, a addr.Addr, config sock.DialConfig, patience time.Duration) (*sock.Conn, error) {
	conn, err := dial(ctx, a, config, patience)
	if err != nil || f == (requireFlags{}) {
		return conn, err
	}
	cred, err := conn.PeerCred()
	if err == nil {
		err = f.checkCred(*cred)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	return conn, nil
}

func (f requireFlags) checkCred(cred unix.Ucred) error {
	switch {
	case f.RequireUID != nil && cred.Uid != *f.RequireUID:
		return fmt.Errorf("the server runs as user %d, not %d as --require-uid requires; nothing was sent; find out which server this is", cred.Uid, *f.RequireUID)
	case f.RequireGID != nil && cred.Gid != *f.RequireGID:
		return fmt.Errorf("the server runs as group %d, not %d as --require-gid requires; nothing was sent; find out which server this is", cred.Gid, *f.RequireGID)
	}
	return nil
}
