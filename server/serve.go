package main

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/uds"
)

type serveCmd struct {
	listenFlag
	Mode           mode          `placeholder:"OCTAL" help:"Permission bits of the socket file; who may write may connect (default: what the umask leaves of 0777)."`
	Chunk          int           `default:"16" placeholder:"BYTES" help:"Size of one receive on a stream (default: ${default})."`
	Backlog        int           `default:"0" placeholder:"N" help:"Connections that may wait to be accepted (default: as many as the system allows)."`
	Sndbuf         int           `default:"0" placeholder:"BYTES" help:"Send buffer of datagram and seqpacket sockets, SO_SNDBUF as the kernel counts it; a message may be 32 bytes less (default: the system's)."`
	Spin           time.Duration `default:"100us" placeholder:"DURATION" help:"How long the server goes on asking, after it had something to do, before it sleeps: faster answers for some CPU time. 0s: not at all; nor with one processor (default: ${default})."`
	MaxConnections int           `default:"1000" placeholder:"N" help:"Open connections; further clients are turned away. 0: no limit (default: ${default})."`
	DrainTimeout   time.Duration `default:"5s" placeholder:"DURATION" help:"How long running echoes may take after SIGTERM or SIGINT; a second signal ends them at once (default: ${default})."`
	Identity       string        `placeholder:"TEXT" help:"Who this server is, its node's name for example: a field of every event (default: none)."`
	cli.LogFlags
}

// Validate turns away numbers that make no sense.
func (c *serveCmd) Validate() error {
	switch {
	case c.Chunk < 1 || c.Chunk > 16<<20:
		return fmt.Errorf("--chunk %d: choose from 1 to %d bytes", c.Chunk, 16<<20)
	case c.Backlog < 0 || c.Backlog > 1<<16:
		return fmt.Errorf("--backlog %d: choose from 0 to %d connections", c.Backlog, 1<<16)
	case c.Sndbuf < 0 || c.Sndbuf > 1<<30:
		return fmt.Errorf("--sndbuf %d: choose from 0 to %d bytes", c.Sndbuf, 1<<30)
	case c.Spin < 0 || c.Spin > time.Second:
		return fmt.Errorf("--spin %v: choose from 0s to 1s", c.Spin)
	case c.MaxConnections < 0:
		return fmt.Errorf("--max-connections %d: choose 0 for no limit, or more", c.MaxConnections)
	case c.DrainTimeout < 0:
		return fmt.Errorf("--drain-timeout %v: choose 0s or more", c.DrainTimeout)
	}
	return c.listenFlag.Validate()
}

// Run serves until a signal. It listens on all addresses or on none.
func (c *serveCmd) Run(ctx context.Context, std cli.Std) error {
	log := c.Logger(std.Err)
	if c.Identity != "" {
		log = log.With().Str("identity", echo.Escape(c.Identity)).Logger()
	}
	if names := c.abstract(); names != "" {
		log.Warn().Msg(echo.Escape(names) + ": an abstract name belongs to the network namespace: clients in other containers do not find it")
	}
	config := uds.ListenConfig{Mode: fs.FileMode(c.Mode), Backlog: c.Backlog, SendBuffer: c.Sndbuf}
	var sockets []*uds.Socket
	for _, a := range c.Listen {
		s, err := config.Listen(a)
		if err != nil {
			for _, s := range sockets {
				_ = s.Close()
			}
			return err
		}
		sockets = append(sockets, s)
	}
	server := echo.Server{
		Chunk: c.Chunk, Spin: c.Spin, SendBuffer: c.Sndbuf, MaxConnections: c.MaxConnections, DrainTimeout: c.DrainTimeout, Log: log,
	}
	return server.Serve(ctx, sockets...)
}
