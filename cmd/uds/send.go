//go:build linux

package main

import (
	"context"
	"fmt"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
)

type sendCmd struct {
	Message string `arg:"" optional:"" default:"-" help:"What to send; - is standard input, an empty message only listens."`

	echo.ClientFlags `set:"retry=" set:"timeout=The longest silence once everything is sent; 0s: no limit, but 1s for datagram, which has no end." set:"chunk=65536"` //nolint:staticcheck // kong reads each set

	Hex bool `help:"Print the received bytes as a hex dump."`
}

// Validate rejects values that make no sense.
func (c *sendCmd) Validate() error { return c.ValidateFor(true) }

// Run sends, and prints everything until the server ends, or is silent.
func (c *sendCmd) Run(ctx context.Context, std cli.Std) error {
	client := echo.Client{NoEcho: true}
	if !c.Hex {
		return c.Talk(ctx, std, client, c.Message, std.Out)
	}
	out := newDump(std.Out, c.Connect.Type.Messages())
	err := c.Talk(ctx, std, client, c.Message, out)
	if closeErr := out.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("write the output: %w", closeErr)
	}
	return err
}
