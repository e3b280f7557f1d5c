//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// filesFlags are the flags that the commands that send files share.
type filesFlags struct {
	Connect addr.Addr     `default:"files:./uds_files" placeholder:"ADDR" help:"The server, files:PATH."`
	Retry   time.Duration `default:"0s" placeholder:"DURATION" help:"Keep trying for this long if there is no server yet."`
	Timeout time.Duration `default:"0s" placeholder:"DURATION" help:"The longest wait for an answer; the server needs some seconds for each GiB. 0s: no limit."`
	cli.RequireFlags
	cli.LogFlags
}

// Validate rejects values that make no sense.
func (c *filesFlags) Validate() error {
	switch {
	case c.Connect.Type != addr.Files:
		return fmt.Errorf("--connect %s: this address takes bytes, not files; write files:PATH, if the server listens there", c.Connect)
	case c.Retry < 0:
		return fmt.Errorf("--retry %v: choose 0s or more", c.Retry)
	case c.Timeout < 0:
		return fmt.Errorf("--timeout %v: choose 0s or more", c.Timeout)
	}
	return nil
}

// handOver sends each file that open returns, and prints the server's result
// for it as sha256sum(1) does.
func (c *filesFlags) handOver(ctx context.Context, std cli.Std, names []string, open func(name string) (*os.File, error)) error {
	log := c.Logger(std.Err)
	log.Info().Str("connect", logtext.Escape(c.Connect.String())).Msg("connecting to " + logtext.Escape(c.Connect.Path))
	conn, err := c.Dial(ctx, c.Connect, sock.DialConfig{}, c.Retry)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := files.Client{Timeout: c.Timeout, Log: log}
	for _, name := range names {
		f, err := open(name)
		if err != nil {
			return err
		}
		sum, err := client.Sum(ctx, conn, f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if _, err := fmt.Fprint(std.Out, row(sum, name)); err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
	}
	log.Info().Msg("closing socket")
	return nil
}

// row returns a line in the format of sha256sum: a leading backslash means
// that the name is escaped.
func row(sum files.Sum, name string) string {
	escaped := strings.NewReplacer("\\", `\\`, "\n", `\n`, "\r", `\r`).Replace(name)
	mark := ""
	if escaped != name {
		mark = `\`
	}
	return fmt.Sprintf("%s%x  %s\n", mark, sum.SHA256, escaped)
}

type sendFileCmd struct {
	File []string `arg:"" help:"The files. They need not exist in the server's file system."`
	filesFlags
}

// Validate rejects a file that cannot be sent.
func (c *sendFileCmd) Validate() error {
	if slices.Contains(c.File, "-") {
		return errors.New("send-file -: standard input may not be a file; use client share -, or ./- for a file of this name")
	}
	return c.filesFlags.Validate()
}

// Run sends descriptors of the files themselves.
func (c *sendFileCmd) Run(ctx context.Context, std cli.Std) error {
	return c.handOver(ctx, std, c.File, func(name string) (*os.File, error) {
		// O_NONBLOCK, because opening a named pipe would wait for its writer.
		// The server rejects it.
		return os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	})
}
