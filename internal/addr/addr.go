// Package addr connects the programs by the addresses of their command line:
// Unix sockets, which package sock makes, and for comparison TCP.
package addr

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/udsecho/udsecho/uds/sock"
)

// TypeOf returns the type of a connection that [Dial] has made; for one to an
// address of files it is seqpacket.
func TypeOf(c *sock.Conn) Type { return Type(c.Type()) }

// Type is a transport: a socket type under the field's name, the type files,
// which is seqpacket for another purpose, or tcp for comparison.
type Type string

// The types.
const (
	Stream    = Type(sock.Stream)
	Datagram  = Type(sock.Datagram)
	Seqpacket = Type(sock.Seqpacket)
	Files     = Type("files") // seqpacket: messages that carry descriptors of files
	TCP       = Type("tcp")   // an internet stream
)

// Unix reports whether the type is one of AF_UNIX.
func (t Type) Unix() bool { return t != TCP }

// Messages reports whether the type keeps the boundaries of messages.
func (t Type) Messages() bool { return t == Datagram || t == Seqpacket || t == Files }

// Connects reports whether a server of the type accepts connections.
func (t Type) Connects() bool { return t != Datagram }

// Addr is the address of one end, as written on the command line: TYPE:PATH,
// files:PATH, or tcp:HOST:PORT with HOST:PORT as the Path.
type Addr struct {
	Type Type
	Path string
}

// ParseAddr reads an address; a bare path means stream. The error is a
// [sock.ErrAddress].
func ParseAddr(s string) (Addr, error) {
	form, path, ok := strings.Cut(s, ":")
	switch t := Type(form); {
	case ok && !t.Unix():
		if err := checkHostPort(s, path); err != nil {
			return Addr{}, err
		}
		return Addr{t, path}, nil
	case ok && t == Files:
		if _, err := sock.ParseAddr("seqpacket:" + path); err != nil {
			return Addr{}, err
		}
		return Addr{t, path}, nil
	case ok && !strings.ContainsAny(form, "/@.") && t != Stream && t != Datagram && t != Seqpacket:
		return Addr{}, fmt.Errorf("%w %q: unknown form %q; write stream:PATH, datagram:PATH, seqpacket:PATH, files:PATH, tcp:HOST:PORT, or ./%s for a path with a colon",
			sock.ErrAddress, s, form, s)
	}
	a, err := sock.ParseAddr(s)
	return Addr{Type(a.Type), a.Path}, err
}

func checkHostPort(s, hostPort string) error {
	_, port, err := net.SplitHostPort(hostPort)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%w %q: %q is not HOST:PORT; write tcp:127.0.0.1:7000, or tcp:[::1]:7000", sock.ErrAddress, s, hostPort)
	}
	return nil
}

// Sock returns the address of a Unix socket as package sock writes it.
func (a Addr) Sock() sock.Addr {
	if a.Type == Files {
		return sock.Addr{Type: sock.Seqpacket, Path: a.Path}
	}
	return sock.Addr{Type: sock.Type(a.Type), Path: a.Path}
}

// Abstract reports whether the address is a name in the network namespace and
// not a file.
func (a Addr) Abstract() bool { return a.Type.Unix() && a.Sock().Abstract() }

// Network returns the name that package net uses for the type.
func (a Addr) Network() string {
	if !a.Type.Unix() {
		return string(a.Type)
	}
	return a.Sock().Network()
}

// String returns the address in the form that [ParseAddr] reads.
func (a Addr) String() string { return string(a.Type) + ":" + a.Path }
