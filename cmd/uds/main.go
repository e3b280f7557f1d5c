//go:build linux

// Command uds looks at any Unix domain socket of a machine, talks to it, stands
// between it and its clients, and measures it.
//
//	uds bench [--connect ADDR]... [--size BYTES,...] [--connections N,...]
//	uds forward [--listen ADDR] --connect ADDR [--show hex|json|FILE.pcapng] ...
//	uds healthcheck [--listen ADDR]... # of a running uds forward
//	uds inspect [--format table|json] PATH...
//	uds ls [PATH|@NAME]... [--format table|json|mermaid|dot] [--watch]
//	uds send [--connect ADDR] [--hex] [MESSAGE]
//	uds tap PATH [--show hex|json|FILE.pcapng]
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

	Bench       benchCmd       `cmd:"" help:"Measure echo servers, side by side."`
	Forward     forwardCmd     `cmd:"" help:"Relay clients to another socket, and show what passes."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running relay whether it answers."`
	Inspect     inspectCmd     `cmd:"" help:"Show what a path is, who serves and uses it, and why it fails."`
	Ls          lsCmd          `cmd:"" help:"List the sockets that are served, and who is connected."`
	Send        sendCmd        `cmd:"" help:"Send, and print everything that the server answers."`
	Tap         tapCmd         `cmd:"" help:"Show what passes a running socket, without a restart."`
	TapGuard    tapGuardCmd    `cmd:"" hidden:""`
	Wait        waitCmd        `cmd:"" help:"Wait until sockets are served, then run a command."`
}

// Help ends uds --help.
func (*commands) Help() string {
	return `Examples:

	uds ls /var/run/docker.sock            who is connected, in which container?
	uds tap /run/app.sock                  what is being said right now?
	uds wait /run/db.sock --timeout 30s -- my-program`
}

func main() {
	os.Exit(cli.Main("uds", "Look at any Unix domain socket of this machine, and talk to it.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}))
}
