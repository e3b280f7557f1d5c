//go:build linux

// Command server echoes everything that it receives on Unix domain sockets,
// until it is told to stop.
//
//	server [--listen ADDR]... [--mode OCTAL] [--chunk BYTES] [--takeover]
//	server [--allow-uid UID]... [--max-connections N] [--admin ADDR] ...
//	server healthcheck [--listen ADDR]...
//
// An ADDR is stream:PATH, datagram:PATH or seqpacket:PATH; a bare PATH means
// stream:PATH. On files:PATH it reads the files that clients send. For
// comparison there is tcp:HOST:PORT.
package main

import (
	"context"
	"os"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/server"
)

type commands struct {
	Version kong.VersionFlag `short:"V" env:"-" help:"Show the version."`

	Serve       serveCmd       `cmd:"" default:"withargs" help:"Echo to every client. This is the default."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running server whether all addresses answer."`
}

// Help ends server --help.
func (*commands) Help() string {
	return `Examples:

	server                                      echo on ./uds_socket
	server --listen stream:s,datagram:d         on two sockets
	server --mode 0660 --allow-uid 1000         for some clients alone

Flags of the default command: server serve --help.`
}

func main() {
	os.Exit(cli.Main("server", "Echo everything received on Unix domain sockets.", &commands{},
		[]os.Signal{syscall.SIGTERM, syscall.SIGINT}))
}

type healthcheckCmd struct{ server.Healthcheck }

// Run asks for an echo on every address, and sends a file to each files:
// address.
func (c *healthcheckCmd) Run() error {
	return c.Check(func(ctx context.Context, a addr.Addr) error {
		if a.Type == addr.Files {
			return files.Check(ctx, a)
		}
		return echo.Check(ctx, a)
	})
}
