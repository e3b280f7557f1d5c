package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// A Collector collects the sockets of a machine. It remembers the names of
// containers.
type Collector struct{ names names }

// Sockets returns the sockets that are served, and the pairs, in all network
// namespaces that this process may enter. It connects to none of them.
func (c *Collector) Sockets() ([]*Socket, Unseen, error) {
	all, denied, err := namespaces()
	if err != nil {
		return nil, Unseen{}, err
	}
	held := map[uint32][]*Process{}
	for _, ns := range all {
		for _, s := range ns.sockets {
			held[s.Number] = nil
		}
	}
	closed, err := holders(held)
	if err != nil {
		return nil, Unseen{}, err
	}
	return join(all, held), Unseen{closed, denied, !firstPIDs()}, nil
}

// Name completes the containers of sockets with their names. For containers that
// are new to it, it asks the engine, which sees that as a client.
func (c *Collector) Name(ctx context.Context, sockets []*Socket) {
	var processes []*Process
	for _, s := range sockets {
		ends := []*End{s.Server}
		for _, of := range s.Connections {
			ends = append(ends, of.Client, of.Server)
		}
		for _, e := range ends {
			if e != nil {
				processes = append(processes, e.Processes...)
			}
		}
	}
	if c.names == nil {
		c.names = names{}
	}
	c.names.complete(ctx, processes)
}

// Unseen is what Sockets could not look into.
type Unseen struct {
	Processes, Namespaces int  // the network namespaces of these processes are not counted
	Outside               bool // processes outside of the pid namespace of this one
}

// String says so with the cure; it returns "" if everything was seen.
func (u Unseen) String() string {
	if u == (Unseen{}) {
		return ""
	}
	text := fmt.Sprintf("cannot look into all processes and network namespaces (%d and %d are missing)", u.Processes, u.Namespaces)
	if u.Outside {
		text = "cannot look outside of this container"
	}
	if os.Geteuid() != 0 {
		return text + "; run it as root"
	}
	return text + "; it needs CAP_SYS_PTRACE and CAP_SYS_ADMIN, and in a container docker run --pid host --cap-add SYS_PTRACE --cap-add SYS_ADMIN"
}

// firstPIDs reports whether this process is in the machine's first pid
// namespace, whose number is PROC_PID_INIT_INO of linux/proc_ns.h.
func firstPIDs() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) != nil || st.Ino == 0xEFFFFFFC
}

// At returns a function that picks sockets: those bound to the file at a path,
// or to an abstract name, @NAME. If no file is there, it picks those that were
// bound with the same path, for example in a container. Of an open socket,
// /proc/PID/fd/N, it picks the connection.
func At(path string) (pick func(*Socket) *Socket, err error) {
	if path == "" || path == "@" {
		return nil, errors.New("the path is empty")
	}
	bound := func(is func(why.Socket) bool) func(*Socket) *Socket {
		return func(s *Socket) *Socket {
			if s.Pair() || !is(s.bound) {
				return nil
			}
			return s
		}
	}
	byName := bound(func(s why.Socket) bool { return nameOf(s.Name) == logtext.Escape(path) })
	if path[0] == '@' {
		return byName, nil
	}
	file, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return byName, nil
	}
	defer func() { _ = file.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return nil, fmt.Errorf("%s is a %s, not a socket", path, why.Kind(st.Mode))
	case why.IsOpenSocket(int(file.Fd())):
		return func(s *Socket) *Socket { return s.of(uint32(st.Ino)) }, nil
	default:
		return bound(why.IsFile(int(file.Fd()))), nil
	}
}

// of returns the socket with the one connection that an open socket belongs to;
// with all if that is the server's; nil if there is none.
func (s *Socket) of(number uint32) *Socket {
	is := func(e *End) bool { return e != nil && e.Inode == number }
	if is(s.Server) {
		return s
	}
	for _, c := range s.Connections {
		if is(c.Client) || is(c.Server) {
			one := *s
			one.Connections = []Connection{c}
			return &one
		}
	}
	return nil
}
