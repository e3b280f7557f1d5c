package uds

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxPath is how many bytes of path fit sun_path with its closing NUL,
// unix(7), "Address format".
const MaxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Type is a socket type by the name that the field gives it, socket(2).
type Type string

// The three types of AF_UNIX, one of them under a second name for another
// purpose, and what they are compared with.
const (
	Stream    Type = "stream"    // SOCK_STREAM: bytes, no boundaries
	Datagram  Type = "datagram"  // SOCK_DGRAM: messages, no connection
	Seqpacket Type = "seqpacket" // SOCK_SEQPACKET: messages over a connection
	Files     Type = "files"     // SOCK_SEQPACKET: descriptors of files with the messages
	TCP       Type = "tcp"       // an internet stream
	UDP       Type = "udp"       // internet datagrams
)

// types are the three that the kernel has; forms are those of an address.
var (
	types     = []Type{Stream, Datagram, Seqpacket}
	addrForms = append(types[:3:3], Files)
)

// Unix tells whether the type is one of AF_UNIX.
func (t Type) Unix() bool { return t != TCP && t != UDP }

// Messages tells whether the type keeps the boundaries of messages.
func (t Type) Messages() bool { return t == Datagram || t == Seqpacket || t == Files || t == UDP }

// Connects tells whether a server of the type accepts connections.
func (t Type) Connects() bool { return t != Datagram && t != UDP }

func (t Type) sotype() int {
	switch t {
	case Datagram:
		return unix.SOCK_DGRAM
	case Seqpacket, Files:
		return unix.SOCK_SEQPACKET
	default:
		return unix.SOCK_STREAM
	}
}

// Addr is one end, written TYPE:PATH. A path that starts with @ is an abstract
// name: it is no file, and belongs to the network namespace, so that it does not
// cross containers. For comparison there are tcp:HOST:PORT and udp:HOST:PORT,
// whose Path is HOST:PORT.
type Addr struct {
	Type Type
	Path string
}

// ParseAddr reads TYPE:PATH; a bare path means stream. It returns an
// [ErrAddress] for what cannot be bound or dialled whatever the file system
// holds: bind(2) would take an empty path for "choose me an abstract name" and
// end a path at its first NUL, silently.
func ParseAddr(s string) (Addr, error) {
	a := Addr{Stream, s}
	if form, path, ok := strings.Cut(s, ":"); ok && !strings.ContainsAny(form, "/@.") {
		a = Addr{Type(form), path}
		if !a.Type.Unix() {
			if err := checkHostPort(s, path); err != nil {
				return Addr{}, err
			}
			return a, nil
		}
		if !slices.Contains(addrForms, a.Type) {
			return Addr{}, fmt.Errorf("%w %q: unknown form %q: write %s, or ./%s for a path with a colon",
				ErrAddress, s, form, forms(), s)
		}
	}
	switch {
	case a.Path == "" || a.Path == "@":
		return Addr{}, fmt.Errorf("%w %q: the path is empty: write %s:PATH", ErrAddress, s, a.Type)
	case strings.HasSuffix(a.Path, "/"):
		return Addr{}, fmt.Errorf("%w %q: the path is a directory: name the socket file in it", ErrAddress, s)
	}
	if err := checkPath(a.Path); err != nil {
		return Addr{}, err
	}
	return a, nil
}

func checkHostPort(s, hostPort string) error {
	_, port, err := net.SplitHostPort(hostPort)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%w %q: %q is no HOST:PORT: write 127.0.0.1:7000, or [::1]:7000", ErrAddress, s, hostPort)
	}
	return nil
}

func forms() string {
	var b strings.Builder
	for i, t := range addrForms {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(t) + ":PATH")
	}
	return b.String() + ", tcp:HOST:PORT, udp:HOST:PORT"
}

// checkPath refuses what the kernel would take for another path: nothing, or an
// abstract name of nothing, for a name of its own choice, and a path with a NUL
// byte for what is before it.
func checkPath(path string) error {
	switch {
	case path == "" || path == "@":
		return fmt.Errorf("%w %q: the path is empty", ErrAddress, path)
	case strings.IndexByte(path, 0) >= 0:
		return fmt.Errorf("%w %q: the path holds a NUL byte: leave it out", ErrAddress, path)
	case len(path) > MaxPath:
		return fmt.Errorf("%w %q: path is %d bytes, sun_path holds %d: choose a shorter path, or change to its directory and use a relative one",
			ErrAddress, path, len(path), MaxPath)
	}
	return nil
}

// Abstract tells whether the address is a name in the network namespace and
// no file, unix(7), "abstract".
func (a Addr) Abstract() bool { return a.Type.Unix() && strings.HasPrefix(a.Path, "@") }

// Network is the name that package net has for the type.
func (a Addr) Network() string {
	switch a.Type {
	case Datagram:
		return "unixgram"
	case Seqpacket, Files:
		return "unixpacket"
	case TCP, UDP:
		return string(a.Type)
	default:
		return "unix"
	}
}

// String is the address as [ParseAddr] reads it.
func (a Addr) String() string { return string(a.Type) + ":" + a.Path }
