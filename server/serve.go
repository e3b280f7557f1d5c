//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

type serveCmd struct {
	server.ListenFlag
	server.LimitFlags `set:"idle=10m"`
	Chunk             int           `default:"16" placeholder:"BYTES" help:"Size of one receive on a stream."`
	Sndbuf            int           `placeholder:"BYTES" help:"Send buffer (SO_SNDBUF) of datagram and seqpacket sockets; a message may be 32 bytes less (default: the system's)."`
	Spin              time.Duration `default:"100us" placeholder:"DURATION" help:"How long to poll before sleeping, for faster answers at the cost of CPU time; 0s: no polling."`
	Takeover          bool          `help:"Take the sockets over from the running server, and hand them over to the next one; each needs this flag. No client is refused."`
	WriteTimeout      time.Duration `default:"30s" placeholder:"DURATION" help:"Disconnect clients that have data to read but read nothing for this long; 0s: no limit."`
	Admin             *addr.Addr    `placeholder:"ADDR" help:"Serve metrics and status over HTTP at this address, stream:PATH, for the server's own user."`
	Identity          string        `placeholder:"TEXT" help:"A name for this server, its node's name for example, in every event and in --admin's status."`
	cli.LogFlags
}

// Validate rejects numbers that make no sense.
func (c *serveCmd) Validate() error {
	switch {
	case c.Chunk < 1 || c.Chunk > 16<<20:
		return fmt.Errorf("--chunk %d: choose from 1 to %d bytes", c.Chunk, 16<<20)
	case c.Sndbuf < 0 || c.Sndbuf > 1<<30:
		return fmt.Errorf("--sndbuf %d: choose from 0 to %d bytes", c.Sndbuf, 1<<30)
	case c.Spin < 0 || c.Spin > time.Second:
		return fmt.Errorf("--spin %v: choose from 0s to 1s", c.Spin)
	case c.WriteTimeout < 0:
		return fmt.Errorf("--write-timeout %v: choose 0s for no limit, or more", c.WriteTimeout)
	case c.Admin != nil && c.Admin.Abstract():
		return fmt.Errorf("--admin %s: an abstract name is open to all users of the network namespace; write a path", c.Admin)
	case c.Admin != nil && c.Admin.Type != addr.Stream:
		return fmt.Errorf("--admin %s: HTTP needs a stream; write stream:PATH", c.Admin)
	case c.Admin != nil && slices.ContainsFunc(c.Listen, func(a addr.Addr) bool { return a.Path == c.Admin.Path }):
		return fmt.Errorf("--admin %s: the path is given to --listen too", c.Admin)
	}
	for _, a := range c.Listen {
		if c.Takeover && (!a.Type.Unix() || a.Abstract()) {
			return fmt.Errorf("--listen %s: --takeover needs a path: the control socket is beside it", a)
		}
	}
	if err := c.LimitFlags.Validate(c.Listen); err != nil {
		return err
	}
	return c.ListenFlag.Validate()
}

// Run serves until a signal. It listens on all addresses or on none.
func (c *serveCmd) Run(ctx context.Context, std cli.Std) error {
	stats := new(server.Stats)
	log, lines := c.LoopLogger(std.Err, logtext.Escape(c.Identity))
	defer lines.Flush()
	c.Warn(log)
	if err := c.CheckOpenFiles(c.Listen); err != nil {
		return err
	}
	listen := sock.ListenConfig{Mode: c.Mode.Exact(), Backlog: c.Backlog, SendBuffer: c.Sndbuf, Control: addr.RefuseRights(c.Listen...)}
	sockets, handover, err := server.Sockets(listen, c.Listen, c.Takeover)
	stopAdmin := func() {}
	if err == nil {
		// The admin socket comes after the sockets: a client that gets an
		// answer from it finds them, too.
		stopAdmin, err = c.startAdmin(ctx, stats, log, lines.Dropped)
	}
	if err != nil {
		server.CloseSockets(sockets, handover)
		return err
	}
	defer stopAdmin()
	each, beside := 1, 0
	if server.Has(sockets, addr.Files) {
		each = 2 // plus the file that a client has sent
	}
	if c.Admin != nil {
		beside = adminConnections
	}
	config := c.Config(sockets, each, beside, 1, c.Sndbuf, log)
	config.Spin, config.Handover, config.OwnDirectory, config.Stats = c.Spin, handover, c.absolute(), stats
	s, err := server.New(config)
	if err != nil {
		server.CloseSockets(sockets, handover)
		return err
	}
	echoes := echo.New(s, echo.Config{Chunk: c.Chunk, SendBuffer: c.Sndbuf, IdleTimeout: c.IdleTimeout, WriteTimeout: c.WriteTimeout})
	reader := files.New(s, files.Config{IdleTimeout: c.IdleTimeout, WriteTimeout: c.WriteTimeout})
	services := server.Services(echoes, sockets...)
	for i := range services {
		if services[i].Addr.Type == addr.Files {
			services[i].Handler = reader
		}
	}
	return s.Serve(ctx, services...)
}

// startAdmin serves --admin until stop is called, also while echoes in flight
// run to their end.
func (c *serveCmd) startAdmin(ctx context.Context, stats *server.Stats, log zerolog.Logger, dropped func() uint64) (stop func(), err error) {
	if c.Admin == nil {
		return func() {}, nil
	}
	a := &admin{
		addr: *c.Admin, wait: c.Takeover, identity: c.Identity, stats: stats, started: time.Now(), log: log, dropped: dropped,
	}
	return a.start(context.WithoutCancel(ctx))
}

// absolute reports whether no path depends on the working directory.
func (c *serveCmd) absolute() bool {
	relative := func(a addr.Addr) bool { return a.Type.Unix() && !a.Abstract() && a.Path[0] != '/' }
	return !slices.ContainsFunc(c.Listen, relative) && (c.Admin == nil || !relative(*c.Admin))
}
