// Package inspect finds out what is at a path: its type, mode and owner, and of a
// socket whether it is served, by whom, and how many wait there. It connects
// once, and asks sock_diag(7).
package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

// State is whether somebody is behind a socket's name.
type State string

// The states of a socket.
const (
	Live    State = "live"    // it takes connections, or messages
	Private State = "private" // a datagram socket that takes messages from its own peer only, as a client's does
	Bound   State = "bound"   // somebody holds it, and does not listen yet
	Stale   State = "stale"   // nobody holds it; only the file is left
	Unknown State = "unknown" // connecting is not allowed, and the kernel tells nothing either
)

// A Result is what can be found out about a path. What is not known is nil or
// empty.
type Result struct {
	Path  string   `json:"path"`
	Row   string   `json:"row"`   // type, mode, owner, group and path as ls(1) writes them; "" for an abstract name
	Kind  string   `json:"kind"`  // the file's type in words, of what a symbolic link leads to
	Type  uds.Type `json:"type"`  // the socket's
	State State    `json:"state"` // the socket's

	// Who called listen(2), by SO_PEERCRED. A pid of 0 is one of another pid
	// namespace. Of a datagram socket, and of one that cannot be connected to,
	// only the owner is known.
	UID     *uint32 `json:"uid"`
	GID     *uint32 `json:"gid"`
	PID     *int32  `json:"pid"`
	Process string  `json:"process"` // the pid's name

	// Connections that wait to be accepted, and how many may wait; the kernel
	// lets one more in. Before this inspection made its own.
	Waiting *uint32 `json:"waiting"`
	Backlog *uint32 `json:"backlog"`
	// The size of a datagram socket's next message; 0 also where there is none.
	// How many there are, the kernel does not tell.
	NextBytes *uint32 `json:"next_bytes"`
	Full      *bool   `json:"full"` // whether the next to connect, or to send, has to wait

	NotTold string `json:"not_told"` // why sock_diag(7) has said nothing of this socket

	Why      []string `json:"why"`       // what keeps the socket from working, or will, each with its cure
	ReadOnly bool     `json:"read_only"` // it is on a read-only mount
}

// Path says what is at a path, or behind an abstract name, @NAME. It connects
// once, which the server sees as a client that says nothing; datagram servers do
// not see it. It returns an error and a Result both where it remains unknown
// whether a socket is served.
func Path(path string) (*Result, error) {
	in, err := inspect(path)
	if in != nil && path[0] != '@' && (err == nil || in.State == Unknown) {
		in.explain()
	}
	if err == nil {
		return in, nil
	}
	if in != nil && in.State != Unknown {
		in = nil
	}
	return in, fmt.Errorf("inspect %s: %w", path, err)
}

func inspect(path string) (*Result, error) {
	in := &Result{Path: path, Why: []string{}}
	switch {
	case path == "" || path == "@":
		return nil, fmt.Errorf("%w: the path is empty", uds.ErrAddress)
	case path[0] == '@' && len(path) > uds.MaxPath:
		return nil, fmt.Errorf("%w: path is %d bytes, sun_path holds %d", uds.ErrAddress, len(path), uds.MaxPath)
	case path[0] == '@':
		in.Kind = "abstract socket"
		return in, in.socket(path, func(s diagSocket) bool { return s.isAbstract(path) })
	}
	// The row comes first: a server of one client, which the inspection is, may
	// be gone after it with its file.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return in.unseen(err)
	}
	in.Kind = Kind(st.Mode)
	in.Row = fmt.Sprintf("%s%s %s %s %s", kinds[st.Mode&unix.S_IFMT].letter, fs.FileMode(st.Mode).Perm().String()[1:],
		UserName(st.Uid), GroupName(st.Gid), path)
	file, err := os.OpenFile(path, unix.O_PATH, 0)
	switch {
	case errors.Is(err, unix.ENOENT) && in.Row[0] == 'l': // it leads to nothing
		return in, nil
	case err != nil:
		return in.unseen(err)
	}
	defer func() { _ = file.Close() }()
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	in.Kind = Kind(st.Mode)
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return in, nil
	}
	// The descriptor's path leads to this very file, whatever becomes of its
	// name, and fits sun_path however long the name is.
	return in, in.socket(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), func(s diagSocket) bool { return s.isFile(&st) })
}

// unseen is the result for a path that cannot be looked at.
func (in *Result) unseen(err error) (*Result, error) {
	if errors.Is(err, unix.EACCES) {
		in.State = Unknown
	}
	return in, explain(in.Path, err)
}

func explain(path string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (ENOENT): nothing is there: look for a mistake in the path, or where the volume is mounted", unix.ENOENT)
	}
	return uds.Explain(path, err)
}

// socket inspects a socket by a name that fits connect(2). The kernel is asked
// first, so that what it counts is not our own connection.
func (in *Result) socket(name string, is func(diagSocket) bool) error {
	all, diagErr := diagnose()
	err := in.connect(name)
	var found *diagSocket
	for i, s := range all {
		if is(s) && s.serves() && (in.Type == "" || typeOf(s.sotype) == in.Type) {
			found = &all[i]
		}
	}
	switch {
	case err == unix.EACCES && found != nil:
		in.Type, in.State = typeOf(found.sotype), Live
		if in.Type == uds.Datagram && found.state == stateEstablished {
			in.State = Private
		}
	case err == unix.EACCES:
		in.State = Unknown
		return fmt.Errorf("cannot tell whether it is served: %w", uds.Explain(in.Path, err))
	case err == unix.ECONNREFUSED && name == in.Path && slices.ContainsFunc(all, is):
		in.State = Bound
	case err != nil:
		return uds.Explain(in.Path, err)
	}
	switch {
	case in.State != Live && in.State != Private:
	case diagErr != nil:
		in.NotTold = fmt.Sprintf("sock_diag: %v", diagErr)
	case found == nil:
		in.NotTold = "the socket belongs to another network namespace"
	default:
		in.told(found)
	}
	return nil
}

// connect tries each type and asks who is there: a wrong type fails with
// EPROTOTYPE, unix(7). A socket that is bound and does not listen refuses its own
// type alone; behind the file of one that is gone nothing has a type.
// ECONNREFUSED is for abstract names only, which each type has of its own.
func (in *Result) connect(name string) error {
	var refused []uds.Type
	for _, t := range types {
		fd, err := unix.Socket(unix.AF_UNIX, t.number|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		switch err = again(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: name}) }); {
		case err == nil:
			in.Type, in.State = t.name, Live
			err = in.ask(fd)
		case err == unix.EAGAIN:
			in.Type, in.State, in.Full = t.name, Live, new(true)
			err = nil
		case err == unix.EPERM && t.name == uds.Datagram: // connect(2), of a socket that is connected itself
			in.Type, in.State = t.name, Private
			err = nil
		case err == unix.ECONNREFUSED:
			refused = append(refused, t.name)
		}
		_ = unix.Close(fd)
		if err != unix.ECONNREFUSED && err != unix.EPROTOTYPE {
			return err
		}
	}
	switch {
	case name[0] == '@':
		return unix.ECONNREFUSED
	case len(refused) == len(types):
		in.State = Stale
	case len(refused) == 1:
		in.Type, in.State = refused[0], Bound
	default:
		return unix.EPROTOTYPE // of a type that unix(7) does not have, or replaced meanwhile
	}
	return nil
}

// ask asks a connected socket about the other end.
func (in *Result) ask(fd int) error {
	if in.Type == uds.Datagram { // SO_PEERCRED would give -1, -1 and 0
		// poll(2) waits for the other end's queue.
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		err := again(func() error {
			n, err := unix.Poll(events, 0)
			in.Full = new(n == 0)
			return err
		})
		return os.NewSyscallError("poll", err)
	}
	in.Full = new(false)
	cred, err := transport.PeerCred(fd)
	if err != nil {
		return err
	}
	in.UID, in.GID, in.PID = &cred.Uid, &cred.Gid, &cred.Pid
	if cred.Pid != 0 { // where /proc shows no other users' processes, there is none
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
		in.Process = string(bytes.TrimSuffix(comm, []byte("\n")))
	}
	return nil
}

// told takes over what sock_diag(7) knows.
func (in *Result) told(s *diagSocket) {
	if in.UID == nil {
		in.UID = s.uid
	}
	if in.UID == nil {
		in.NotTold = "sock_diag has no owners before Linux 5.3"
	}
	if in.Type == uds.Datagram {
		in.NextBytes = s.queue
		return
	}
	in.Waiting, in.Backlog = s.queue, s.limit
	if s.queue != nil && s.limit != nil {
		in.Full = new(*s.queue > *s.limit)
	}
}

// types are those of unix(7), in the order in which they are tried.
var types = []struct {
	name   uds.Type
	number int
}{{uds.Stream, unix.SOCK_STREAM}, {uds.Datagram, unix.SOCK_DGRAM}, {uds.Seqpacket, unix.SOCK_SEQPACKET}}

func typeOf(sotype uint8) uds.Type {
	for _, t := range types {
		if t.number == int(sotype) {
			return t.name
		}
	}
	return ""
}

// kinds are the file types of inode(7).
var kinds = map[uint32]struct{ letter, words string }{
	unix.S_IFREG:  {"-", "regular file"},
	unix.S_IFDIR:  {"d", "directory"},
	unix.S_IFLNK:  {"l", "symbolic link"},
	unix.S_IFIFO:  {"p", "named pipe"},
	unix.S_IFCHR:  {"c", "character device"},
	unix.S_IFBLK:  {"b", "block device"},
	unix.S_IFSOCK: {"s", "socket"},
}

// Kind is the file type in words, by a file's mode.
func Kind(mode uint32) string { return kinds[mode&unix.S_IFMT].words }

// UserName is the name of a user, or the number where it has none.
func UserName(id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	if u, err := user.LookupId(n); err == nil {
		return u.Username
	}
	return n
}

// GroupName is the name of a group, or the number where it has none.
func GroupName(id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	if g, err := user.LookupGroupId(n); err == nil {
		return g.Name
	}
	return n
}
