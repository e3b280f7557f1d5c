//go:build linux

package main

import (
	_ "container/ring"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

type pairCmd struct {
	messageArg
	cli.LogFlags
}

// Run sends to a child and receives the echo. It prints the child's events
// after the child has ended, so that the two transcripts do not mix.
func (c *pairCmd) Run(ctx context.Context, std cli.Std) error {
	conn, other, err := sock.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var events bytes.Buffer
	child := exec.CommandContext(ctx, "/proc/self/exe", "pair-child", "--log-format", c.LogFormat, "--log-level", c.LogLevel)
	child.ExtraFiles = []*os.File{other} // the child's descriptor 3
	child.Stderr = &events
	err = child.Start()
	_ = other.Close() // now only the child has it: when the child ends, the connection ends
	if err != nil {
		return fmt.Errorf("start the child: %w", err)
	}

	log := c.Logger(std.Err).With().Str("process", "parent").Logger()
	client := echo.Client{Log: log}
	err = client.Message(ctx, conn, []byte(c.Message), std.Out)
	if err == nil {
		log.Info().Msg("closing socket")
	}
	_ = conn.Close() // ends the child
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

// pairChildCmd is the command that pair starts.
type pairChildCmd struct {
	cli.LogFlags
}

// Run echoes until the parent closes its end, or dies. It ignores signals,
// because the parent handles them: a terminal sends a signal to both.
func (c *pairChildCmd) Run(ctx context.Context, std cli.Std) error {
	log := c.Logger(std.Err).With().Str("process", "child").Logger()
	s, err := server.New(server.Config{Log: log})
	if err == nil {
		err = s.ServeConn(context.WithoutCancel(ctx), 3, echo.New(s, echo.Config{Chunk: 16}))
	}
	if err != nil {
		return fmt.Errorf("as the child of client pair: %w", err)
	}
	return nil
}
// x
