// Command client sends to a Unix domain socket and prints what comes back.
//
//	client [--connect ADDR] [MESSAGE]
//	client [--connect ADDR] - < FILE
//	client bench [--connect ADDR]... [--size BYTES,...] [--connections N,...]
//	client send-file [--connect files:PATH] FILE...
//	client share [--connect files:PATH] FILE...
//
// An ADDR is stream:PATH, datagram:PATH or seqpacket:PATH; a bare PATH means
// stream:PATH. For comparison there are tcp:HOST:PORT and udp:HOST:PORT. The payload goes to
// standard output and nothing else does; events go to standard error.
package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/cli"
)

type commands struct {
	Bench benchCmd `cmd:"" help:"Measure one server, or several side by side."`
	Echo  echoCmd  `cmd:"" default:"withargs" help:"Send a message, or standard input, and print the echo. This is the default."`

	SendFile sendFileCmd `cmd:"" help:"Hand over open files for the server to read, and print their SHA-256."`
	Share    shareCmd    `cmd:"" help:"Fill sealed memory, hand it over for the server to map, and print its SHA-256."`
}

func main() {
	// A reader of the output that goes away must not end the process before
	// it has removed its socket: the write fails instead.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(cli.Main("client", "Send to a Unix domain socket and print what comes back.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP},
		kong.Vars{"message": defaultMessage}))
}
