package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/uds"
)

const defaultMessage = "This is the message.  It will be repeated."

type echoCmd struct {
	Message string `arg:"" optional:"" default:"${message}" help:"What to send; - sends standard input (default: a message of 42 bytes)."`

	Connect uds.Addr      `default:"stream:./uds_socket" placeholder:"ADDR" help:"The server: stream:PATH, or stream:@NAME for an abstract name (default: ${default})."`
	Bind    string        `default:"none" placeholder:"NAME" help:"A name for the client's own socket, for the server to tell clients apart: none, auto (beside the server's socket), DIR/ (the same in DIR), or a path (default: ${default})."`
	Retry   time.Duration `default:"0s" placeholder:"DURATION" help:"Keep trying for so long while no server is there yet (default: ${default})."`
	Timeout time.Duration `default:"0s" placeholder:"DURATION" help:"The longest wait for bytes that are due. 0s: no limit (default: ${default})."`
	Chunk   int           `default:"16" placeholder:"BYTES" help:"Size of one receive (default: ${default})."`
	cli.LogFlags
}

// Validate turns away what makes no sense.
func (c *echoCmd) Validate() error {
	switch {
	case c.Chunk < 1 || c.Chunk > 16<<20:
		return fmt.Errorf("--chunk %d: choose from 1 to %d bytes", c.Chunk, 16<<20)
	case c.Retry < 0:
		return fmt.Errorf("--retry %v: choose 0s or more", c.Retry)
	case c.Timeout < 0:
		return fmt.Errorf("--timeout %v: choose 0s or more", c.Timeout)
	case c.Bind == "":
		return errors.New("--bind: empty: choose none, auto, DIR/ or a path")
	case c.Connect.Type != uds.Stream:
		return fmt.Errorf("--connect %s: only stream sockets are spoken to", c.Connect)
	}
	return nil
}

// Run sends and takes back.
func (c *echoCmd) Run(ctx context.Context, std cli.Std) error {
	log := c.Logger(std.Err)
	log.Info().Str("connect", c.Connect.String()).Msg("connecting to " + echo.Escape(c.Connect.Path))
	conn, err := dial(ctx, c.Connect, c.name(), c.Retry)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()

	client := echo.Client{Chunk: c.Chunk, Timeout: c.Timeout, Log: log}
	if c.Message == "-" {
		err = client.Copy(ctx, conn, std.In, std.Out)
	} else {
		err = client.Message(ctx, conn, []byte(c.Message), std.Out)
	}
	if err == nil {
		log.Info().Msg("closing socket")
	}
	return err
}

// name is the client's own name by --bind.
func (c *echoCmd) name() string {
	switch {
	case c.Bind == "none":
		return ""
	case c.Bind == "auto" && c.Connect.Abstract():
		return uds.AutoName("@")
	case c.Bind == "auto":
		return uds.AutoName(filepath.Dir(c.Connect.Path))
	case strings.HasSuffix(c.Bind, "/"):
		return uds.AutoName(c.Bind)
	default:
		return c.Bind
	}
}

// dial connects; it tries again for as long as patience allows where no server
// is there yet: the path is missing or stale, or the backlog is full.
func dial(ctx context.Context, a uds.Addr, name string, patience time.Duration) (*uds.Conn, error) {
	config := uds.DialConfig{Bind: name}
	if patience == 0 {
		return config.Dial(ctx, a)
	}
	wait := backoff.NewExponentialBackOff() // with jitter, so that many clients do not come back as one
	wait.InitialInterval, wait.MaxInterval = 10*time.Millisecond, time.Second
	conn, err := backoff.Retry(ctx, func() (*uds.Conn, error) {
		conn, err := config.Dial(ctx, a)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) {
			return nil, backoff.Permanent(err)
		}
		return conn, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(patience))
	if err != nil && ctx.Err() == nil {
		var permanent *backoff.PermanentError
		if !errors.As(err, &permanent) {
			err = fmt.Errorf("%w (tried for %v)", err, patience)
		}
	}
	return conn, err
}
