//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/files"
)

type shareCmd struct {
	File []string `arg:"" help:"The files; - is standard input."`
	filesFlags
}

// Run fills memory, seals it and sends it.
func (c *shareCmd) Run(ctx context.Context, std cli.Std) error {
	return c.handOver(ctx, std, c.File, func(name string) (*os.File, error) {
		return seal(ctx, name, std.In)
	})
}

// seal reads a file, or in, into sealed memory. Opening and reading may wait
// for a writer that never comes, so seal abandons them when ctx ends.
func seal(ctx context.Context, name string, in io.Reader) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		f, err := fill(name, in)
		done <- result{f, err}
	}()
	select {
	case r := <-done:
		return r.f, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func fill(name string, in io.Reader) (*os.File, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	f, err := files.Seal(name, in)
	if err != nil {
		return nil, fmt.Errorf("fill memory from %s: %w", name, err)
	}
	return f, nil
}
