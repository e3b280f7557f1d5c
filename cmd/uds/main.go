//go:build linux

// Command uds looks at any Unix domain socket of a machine.
//
//	uds ls [PATH|@NAME]... [--format table|json|mermaid|dot] [--watch]
package main

import (
	"os"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/cli"
)

type commands struct {
	Version kong.VersionFlag `short:"V" env:"-" help:"Show the version."`

	Ls lsCmd `cmd:"" help:"List the sockets that are served, and who is connected, in which container."`
}

// Help ends uds --help.
func (*commands) Help() string {
	return `Examples:

	uds ls                       the sockets of this machine and their clients
	uds ls /var/run/docker.sock  each client of one socket
	uds ls --format mermaid      who talks to whom, as a picture in Markdown`
}

func main() {
	os.Exit(cli.Main("uds", "Look at any Unix domain socket of this machine.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}))
}
