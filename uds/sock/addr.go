//go:build linux

package sock

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Type is a socket type, under the name that socket(2) gives it.
type Type string

// The three types of AF_UNIX, unix(7).
const (
	Stream    Type = "stream"    // SOCK_STREAM: bytes, no boundaries
	Datagram  Type = "datagram"  // SOCK_DGRAM: messages, no connection
	Seqpacket Type = "seqpacket" // SOCK_SEQPACKET: messages over a connection
)

var types = []Type{Stream, Datagram, Seqpacket}

// numbers are those of socket(2), networks the names of package net.
var (
	numbers  = map[Type]int{Stream: unix.SOCK_STREAM, Datagram: unix.SOCK_DGRAM, Seqpacket: unix.SOCK_SEQPACKET}
	networks = map[Type]string{Stream: "unix", Datagram: "unixgram", Seqpacket: "unixpacket"}
)

// TypeOf returns the type for a number of socket(2), SOCK_STREAM for example; ""
// if unix(7) has no such type.
func TypeOf(sotype int) Type {
	for t, n := range numbers {
		if n == sotype {
			return t
		}
	}
	return ""
}

// Addr is the address of one end, written TYPE:PATH. A path that starts with @
// is an abstract name: it is not a file. It belongs to the network namespace,
// so it does not cross containers.
type Addr struct {
	Type Type
	Path string
}

// ParseAddr reads TYPE:PATH; a bare path means stream. It returns an
// [ErrAddress] for an unknown type, or a path that [CheckPath] rejects.
func ParseAddr(s string) (Addr, error) {
	a := Addr{Stream, s}
	if form, path, ok := strings.Cut(s, ":"); ok && !strings.ContainsAny(form, "/@.") {
		a = Addr{Type(form), path}
		if !slices.Contains(types, a.Type) {
			return Addr{}, fmt.Errorf("%w %q: unknown type %q; write stream:PATH, datagram:PATH or seqpacket:PATH, or ./%s for a path with a colon",
				ErrAddress, s, form, s)
		}
	}
	if a.Path == "" || a.Path == "@" {
		return Addr{}, fmt.Errorf("%w %q: the path is empty; write %s:PATH", ErrAddress, s, a.Type)
	}
	if err := CheckPath(a.Path); err != nil {
		return Addr{}, err
	}
	return a, nil
}

// Abstract reports whether the address is a name in the network namespace and
// not a file, unix(7), "abstract".
func (a Addr) Abstract() bool { return IsAbstract(a.Path) }

// Network returns the name that package net uses for the type; with it an Addr
// is a [net.Addr].
func (a Addr) Network() string { return networks[a.Type] }

// String returns the address in the form that [ParseAddr] reads.
func (a Addr) String() string { return string(a.Type) + ":" + a.Path }
