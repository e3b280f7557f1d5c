//go:build linux

package main

import (
	"context"
	"fmt"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
)

type messageArg struct {
	Message string `arg:"" optional:"" default:"This is the message.  It will be repeated." help:"What to send (default: a message of 42 bytes)."`
}

type echoCmd struct {
	messageArg

	echo.ClientFlags `set:"retry= If the connection breaks, continue over a new one." set:"timeout=The longest wait for an echo; 0s: no limit." set:"chunk=16, or 65536 for -"` //nolint:staticcheck // kong reads each set

	Window int `default:"8" placeholder:"N" help:"Messages of - that may be in flight, on types other than stream."`
}

// Validate rejects values that make no sense.
func (c *echoCmd) Validate() error {
	if c.Window < 1 || c.Window > 1000 {
		return fmt.Errorf("--window %d: choose from 1 to 1000 messages, as many as the server keeps for a client", c.Window)
	}
	return c.ValidateFor(false)
}

// Run sends and receives the echo.
func (c *echoCmd) Run(ctx context.Context, std cli.Std) error {
	return c.Talk(ctx, std, echo.Client{Window: c.Window}, c.Message, std.Out)
}
