//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/udsecho/udsecho/internal/healthcheck"
	"github.com/udsecho/udsecho/internal/transport"
)

type healthcheckCmd struct {
	listenFlag
	Timeout time.Duration `default:"2s" placeholder:"DURATION" help:"How long all the answers together may take (default: ${default})."`
}

// Validate turns away what makes no sense.
func (c *healthcheckCmd) Validate() error {
	if c.Timeout <= 0 {
		return fmt.Errorf("--timeout %v: choose more than 0s", c.Timeout)
	}
	return c.listenFlag.Validate()
}

// Run asks for an echo on every address, and where files are taken hands one
// over. It needs no shell in the image, and a server that is stopped, or hangs,
// fails it: connecting alone would succeed.
func (c *healthcheckCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	for _, a := range c.Listen {
		check := healthcheck.Echo
		if a.Type == transport.Files {
			check = healthcheck.Files
		}
		if err := check(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
