//go:build linux

// Command uds looks at any Unix domain socket of a machine, talks to it, stands
// between it and its clients, and measures it.
//
//	uds bench [--connect ADDR]... [--size BYTES,...] [--connections N,...]
//	uds forward [--listen ADDR] --connect ADDR [--show hex|json|FILE.pcapng] ...
//	uds healthcheck [--listen ADDR]... # of a running uds forward
//	uds inspect [--format table|json] PATH...
//	uds send [--connect ADDR] [--hex] [MESSAGE]
//	uds wait PATH... [--timeout DURATION] [-- COMMAND...]
//
// An ADDR is stream:PATH, datagram:PATH or seqpacket:PATH; a bare PATH means
// stream:PATH. For comparison there is tcp:HOST:PORT. Only data goes to
// standard output; events go to standard error.
package main

import (
	"os"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/cli"
)

type commands struct {
	Version kong.VersionFlag `short:"V" env:"-" help:"Show the version."`

	Bench       benchCmd       `cmd:"" help:"Measure one echo server, or several side by side."`
	Forward     forwardCmd     `cmd:"" help:"Relay every client to another socket, until SIGTERM or SIGINT, and show what passes."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running relay for an answer on every --listen address. The exit status is 0 if all answer, otherwise 1."`
	Inspect     inspectCmd     `cmd:"" help:"Show what a path is and, for a socket, whether it is live, who listens, how full its backlog is, and why it does not work."`
	Send        sendCmd        `cmd:"" help:"Send a message, or standard input, and print everything until the server ends, or is silent for --timeout."`
	Wait        waitCmd        `cmd:"" help:"Wait until each socket is served, not merely there; then run a command in place of this one, or end."`
}

func main() {
	os.Exit(cli.Main("uds", "Look at any Unix domain socket of this machine, and talk to it.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}))
}
