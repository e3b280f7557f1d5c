//go:build linux

// Command client talks to Unix domain sockets: it sends, and prints what it
// receives; and it relays, inspects and measures.
//
//	client [--connect ADDR] [MESSAGE]
//	client [--connect ADDR] - < FILE
//	client --no-echo [--hex] [--connect ADDR] [MESSAGE]
//	client pair [MESSAGE]
//	client bench [--connect ADDR]... [--size BYTES,...] [--connections N,...]
//	client inspect [--format table|json] PATH...
//	client forward [--listen ADDR] --connect ADDR [--show hex|json|FILE.pcapng] ...
//	client healthcheck [--listen ADDR]... # of a running client forward
//	client send-file [--connect files:PATH] FILE...
//	client share [--connect files:PATH] FILE...
//
// An ADDR is stream:PATH, datagram:PATH or seqpacket:PATH; a bare PATH means
// stream:PATH. Files are sent to files:PATH. For comparison there is
// tcp:HOST:PORT. Only the payload goes to standard output; events go to
// standard error.
package main

import (
	"os"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/cli"
)

type commands struct {
	Version kong.VersionFlag `short:"V" env:"-" help:"Show the version."`

	Bench       benchCmd       `cmd:"" help:"Measure one server, or several side by side."`
	Echo        echoCmd        `cmd:"" default:"withargs" help:"Send a message, or for - standard input, and print the echo. This is the default."`
	Forward     forwardCmd     `cmd:"" help:"Relay every client to another socket, until SIGTERM or SIGINT."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running relay for an answer on every --listen address. The exit status is 0 if all answer, otherwise 1."`
	Inspect     inspectCmd     `cmd:"" help:"Show what a path is and, for a socket, whether it is live, who listens, how full its backlog is, and why it does not work."`
	Pair        pairCmd        `cmd:"" help:"Send a message to a child process and print its echo, over a socketpair, which has no address."`
	SendFile    sendFileCmd    `cmd:"" help:"Send descriptors of files for the server to read, and print their SHA-256."`
	Share       shareCmd       `cmd:"" help:"Fill sealed memory, send its descriptor for the server to map, and print its SHA-256."`

	PairChild pairChildCmd `cmd:"" hidden:"" help:"The child of pair."`
}

func main() {
	os.Exit(cli.Main("client", "Talk to Unix domain sockets: send and receive, relay, inspect, measure.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}))
}
