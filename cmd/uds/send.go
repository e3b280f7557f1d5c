//go:build linux

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/logtext"
)

type sendCmd struct {
	Message string `arg:"" optional:"" default:"-" help:"What to send; - is standard input, an empty message only listens."`

	echo.ClientFlags `set:"retry=" set:"timeout=The longest silence once everything is sent; 0s: no limit, but 1s for datagram, which has no end." set:"chunk=65536"` //nolint:staticcheck // kong reads each set

	Hex bool `help:"Print the received bytes as a hex dump."`
}

// Validate rejects values that make no sense.
func (c *sendCmd) Validate() error {
	if st, err := os.Stat(c.Message); err == nil && st.Mode()&fs.ModeSocket != 0 {
		return fmt.Errorf("%[1]s is a socket, not a message; write uds send --connect %[1]s [MESSAGE], or send its name from standard input", logtext.Escape(c.Message))
	}
	return c.ValidateFor(true)
}

// Help ends the description in uds send --help.
func (*sendCmd) Help() string {
	return `Examples:

	uds send --connect /run/app.sock 'hello'
	printf 'GET / HTTP/1.0\r\n\r\n' | uds send --connect /run/http.sock
	uds send --connect datagram:/dev/log '<14>app: hello'`
}

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
