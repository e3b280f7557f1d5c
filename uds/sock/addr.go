package sock

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxPath is the largest number of path bytes that fit sun_path together with
// the closing NUL, unix(7), "Address format".
const MaxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Type is a socket type, under the name that socket(2) gives it.
type Type string

// The three types of AF_UNIX, unix(7).
const (
	Stream    Type = "stream"    // SOCK_STREAM: bytes, no boundaries
	Datagram  Type = "datagram"  // SOCK_DGRAM: messages, no connection
	Seqpacket Type = "seqpacket" // SOCK_SEQPACKET: messages over a connection
)

var types = []Type{Stream, Datagram, Seqpacket}

// TypeOf returns the type for a number of socket(2), SOCK_STREAM for example; ""
// if unix(7) has no such type.
func TypeOf(sotype int) Type {
	i := slices.IndexFunc(types, func(t Type) bool { return t.sotype() == sotype })
	if i < 0 {
		return ""
	}
	return types[i]
}

func (t Type) sotype() int {
	switch t {
	case Datagram:
		return unix.SOCK_DGRAM
	case Seqpacket:
		return unix.SOCK_SEQPACKET
	default:
		return unix.SOCK_STREAM
	}
}

// Addr is the address of one end, written TYPE:PATH. A path that starts with @
// is an abstract name: it is not a file. It belongs to the network namespace,
// so it does not cross containers.
type Addr struct {
	Type Type
	Path string
}

// ParseAddr reads TYPE:PATH; a bare path means stream. It returns an
// [ErrAddress] for an address that can never be bound or dialled, whatever the
// file system holds. Without this check, bind(2) would silently choose an
// abstract name for an empty path, and cut a path at its first NUL byte.
func ParseAddr(s string) (Addr, error) {
	a := Addr{Stream, s}
	if form, path, ok := strings.Cut(s, ":"); ok && !strings.ContainsAny(form, "/@.") {
		a = Addr{Type(form), path}
		if !slices.Contains(types, a.Type) {
			return Addr{}, fmt.Errorf("%w %q: unknown type %q; write stream:PATH, datagram:PATH or seqpacket:PATH, or ./%s for a path with a colon",
				ErrAddress, s, form, s)
		}
	}
	switch {
	case a.Path == "" || a.Path == "@":
		return Addr{}, fmt.Errorf("%w %q: the path is empty; write %s:PATH", ErrAddress, s, a.Type)
	case strings.HasSuffix(a.Path, "/"):
		return Addr{}, fmt.Errorf("%w %q: the path is a directory; name the socket file in it", ErrAddress, s)
	}
	if err := checkPath(a.Path); err != nil {
		return Addr{}, err
	}
	return a, nil
}

// checkPath rejects paths that the kernel would silently read as another path:
// an empty path or abstract name, for which it chooses a name itself, and a
// path with a NUL byte, which it cuts there.
func checkPath(path string) error {
	switch {
	case path == "" || path == "@":
		return fmt.Errorf("%w %q: the path is empty", ErrAddress, path)
	case strings.IndexByte(path, 0) >= 0:
		return fmt.Errorf("%w %q: the path holds a NUL byte; leave it out", ErrAddress, path)
	case len(path) > MaxPath:
		return fmt.Errorf("%w %q: path is %d bytes, sun_path holds %d; choose a shorter path, or change to its directory and use a relative one",
			ErrAddress, path, len(path), MaxPath)
	}
	return nil
}

func isAbstract(path string) bool { return strings.HasPrefix(path, "@") }

// Abstract reports whether the address is a name in the network namespace and
// not a file, unix(7), "abstract".
func (a Addr) Abstract() bool { return isAbstract(a.Path) }

// Network returns the name that package net uses for the type; with it an Addr
// is a [net.Addr].
func (a Addr) Network() string {
	switch a.Type {
	case Datagram:
		return "unixgram"
	case Seqpacket:
		return "unixpacket"
	default:
		return "unix"
	}
}

// String returns the address in the form that [ParseAddr] reads.
func (a Addr) String() string { return string(a.Type) + ":" + a.Path }
