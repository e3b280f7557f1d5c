//go:build linux

// Command server echoes what it receives on Unix domain sockets, until it is
// told to stop.
//
//	server [--listen ADDR]... [--mode OCTAL] [--chunk BYTES] [--takeover]
//	server [--allow-uid UID]... [--max-connections N] [--admin ADDR] ...
//	server healthcheck [--listen ADDR]...
//
// An ADDR is stream:PATH, datagram:PATH or seqpacket:PATH; a bare PATH means
// stream:PATH. On files:PATH it reads the files that clients hand over. For
// comparison there are tcp:HOST:PORT and udp:HOST:PORT.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/transport"
)

type commands struct {
	Serve       serveCmd       `cmd:"" default:"withargs" help:"Echo to every client, until SIGTERM or SIGINT. This is the default."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running server for an answer on every --listen address; exit status 0 or 1."`
}

func main() {
	os.Exit(cli.Main("server", "Echo what is received on Unix domain sockets.", &commands{},
		[]os.Signal{syscall.SIGTERM, syscall.SIGINT}))
}

// mode is --mode, in octal.
type mode fs.FileMode

func (m *mode) UnmarshalText(text []byte) error {
	parsed, err := cli.ParseMode(string(text))
	*m = mode(parsed)
	return err
}

// listenFlag is what both commands need to know.
type listenFlag struct {
	Listen []transport.Addr `default:"stream:./uds_socket" placeholder:"ADDR" help:"Where to listen: stream:PATH, datagram:PATH, seqpacket:PATH, files:PATH to take files and not bytes, or @NAME for an abstract PATH, which does not cross containers; for comparison tcp:HOST:PORT, udp:HOST:PORT. Repeatable; the variable takes a list with commas (default: ${default})."`
}

// Validate turns away what no server can listen on.
func (f *listenFlag) Validate() error {
	seen := map[string]bool{}
	for _, a := range f.Listen {
		// TCP and UDP may have the same port, two sockets not the same path.
		key := a.Path
		if !a.Type.Unix() {
			key = a.String()
		}
		if seen[key] {
			return fmt.Errorf("--listen %s: the path is given twice", a)
		}
		seen[key] = true
	}
	if len(f.Listen) == 0 {
		return errors.New("--listen: no address: write stream:PATH")
	}
	return nil
}

// abstract are the addresses that are names in the network namespace.
func (f *listenFlag) abstract() string {
	var names []string
	for _, a := range f.Listen {
		if a.Abstract() {
			names = append(names, a.String())
		}
	}
	return strings.Join(names, ", ")
}
