//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echoclient"
	"github.com/udsecho/udsecho/internal/echoserver"
	"github.com/udsecho/udsecho/internal/transport"
)

type pairCmd struct {
	Message string `arg:"" optional:"" default:"${message}" help:"What to send (default: a message of 42 bytes)."`
	cli.LogFlags
}

// Run sends to a child and takes back. The child's events follow when it has
// ended, so that the two transcripts do not mix.
func (c *pairCmd) Run(ctx context.Context, std cli.Std) error {
	conn, other, err := transport.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var events bytes.Buffer
	child := exec.CommandContext(ctx, "/proc/self/exe", "pair-child", "--log-format", c.LogFormat, "--log-level", c.LogLevel)
	child.ExtraFiles = []*os.File{other} // the child's descriptor 3
	child.Stderr = &events
	err = child.Start()
	_ = other.Close() // now the child's alone: when it ends, the connection does
	if err != nil {
		return fmt.Errorf("start the child: %w", err)
	}

	log := c.Logger(std.Err).With().Str("process", "parent").Logger()
	client := echoclient.Client{Log: log}
	err = client.Message(ctx, conn, []byte(c.Message), std.Out)
	if err == nil {
		log.Info().Msg("closing socket")
	}
	_ = conn.Close() // which ends the child
	childErr := child.Wait()
	_, _ = events.WriteTo(std.Err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case childErr != nil:
		return fmt.Errorf("the child failed: %w", childErr)
	}
	return err
}

// pairChildCmd is what pair starts.
type pairChildCmd struct {
	cli.LogFlags
}

// Run echoes until the parent closes its end, as it also does by dying. A
// signal is the parent's affair: a terminal sends it to both.
func (c *pairChildCmd) Run(ctx context.Context, std cli.Std) error {
	log := c.Logger(std.Err).With().Str("process", "child").Logger()
	server := echoserver.Config{Chunk: 16, Log: log}
	if err := server.ServeConn(context.WithoutCancel(ctx), 3); err != nil {
		return fmt.Errorf("as the child of client pair: %w", err)
	}
	return nil
}
