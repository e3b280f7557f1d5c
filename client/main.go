//go:build linux

// Command client sends to an echo server and prints what it receives.
//
//	client [--connect ADDR] [MESSAGE]
//	client [--connect ADDR] - < FILE
//	client pair [MESSAGE]
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

	Echo     echoCmd     `cmd:"" default:"withargs" help:"Send a message, print the echo. This is the default."`
	Pair     pairCmd     `cmd:"" help:"The same with a child process, over a socketpair."`
	SendFile sendFileCmd `cmd:"" help:"Send files as descriptors, print their SHA-256."`
	Share    shareCmd    `cmd:"" help:"Send sealed memory as a descriptor, print its SHA-256."`

	PairChild pairChildCmd `cmd:"" hidden:"" help:"The child of pair."`
}

// Help ends client --help.
func (*commands) Help() string {
	return `Examples:

	client hello                        the echo of a word, from ./uds_socket
	client --connect datagram:d hello   the same from another server
	client - <file                      the echo of a file

Any other socket: uds --help. Flags of the default command: client echo --help.`
}

func main() {
	os.Exit(cli.Main("client", "Send to an echo server on a Unix domain socket, and print the echo.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}))
}
