// Package inspect inspects the file at a path: its type, mode and owner. For a
// socket, it also finds out whether the socket is served, by which user and
// process, and how many connections wait there. It connects once, and asks
// sock_diag(7).
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

// State describes whether a process serves a socket.
type State string

// The states of a socket.
const (
	Live    State = "live"    // it accepts connections, or receives messages
	Private State = "private" // a datagram socket that receives messages from its own peer only, as a client's does
	Bound   State = "bound"   // a process has bound it, and does not listen yet
	Stale   State = "stale"   // no process has it open; only the file is left
	Unknown State = "unknown" // connecting is not allowed, and the kernel reports nothing either
)

// A Result holds everything that was found out about a path. Unknown values
// are nil or empty.
type Result struct {
	Path  string   `json:"path"`
	Row   string   `json:"row"`   // type, mode, owner, group and path as ls(1) writes them; "" for an abstract name
	Kind  string   `json:"kind"`  // the file's type in words; for a symbolic link, that of its target
	Type  uds.Type `json:"type"`  // the socket's
	State State    `json:"state"` // the socket's

	// The process that called listen(2), by SO_PEERCRED. A pid of 0 means a
	// process in another pid namespace. For datagram sockets, and for sockets
	// that refuse the connection, only the owner is known.
	UID     *uint32 `json:"uid"`
	GID     *uint32 `json:"gid"`
	PID     *int32  `json:"pid"`
	Process string  `json:"process"` // the name of the process

	// Connections that wait to be accepted, and how many may wait; the kernel
	// admits one more. Counted before this inspection connected.
	Waiting *uint32 `json:"waiting"`
	Backlog *uint32 `json:"backlog"`
	// The size of a datagram socket's next message, 0 if there is none. The
	// kernel does not report how many messages wait.
	NextBytes *uint32 `json:"next_bytes"`
	Full      *bool   `json:"full"` // whether the next client has to wait to connect or to send

	NotTold string `json:"not_told"` // why sock_diag(7) has not reported this socket

	Why      []string `json:"why"`       // what stops the socket from working now or later, each with its cure
	ReadOnly bool     `json:"read_only"` // it is on a read-only mount
}

// Path inspects the file at a path, or an abstract name, @NAME. It connects
// once. The server sees that as a client that sends nothing; datagram servers
// do not see it. If it cannot find out whether a socket is served, it returns
// both an error and a Result.
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
	// The row comes first: the server may serve only one client, which is this
	// inspection, and then end and remove its file.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return in.unseen(err)
	}
	in.Kind = Kind(st.Mode)
	in.Row = fmt.Sprintf("%s%s %s %s %s", kinds[st.Mode&unix.S_IFMT].letter, fs.FileMode(st.Mode).Perm().String()[1:],
		UserName(st.Uid), GroupName(st.Gid), path)
	file, err := os.OpenFile(path, unix.O_PATH, 0)
	switch {
	case errors.Is(err, unix.ENOENT) && in.Row[0] == 'l': // a symbolic link to a missing file
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
	// The descriptor's path leads to this very file, even if its name changes,
	// and fits sun_path even if the name is long.
	return in, in.socket(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), func(s diagSocket) bool { return s.isFile(&st) })
}

// unseen completes the result for a path that this process cannot look at.
func (in *Result) unseen(err error) (*Result, error) {
	if errors.Is(err, unix.EACCES) {
		in.State = Unknown
	}
	return in, explain(in.Path, err)
}

func explain(path string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (ENOENT): nothing is there; look for a mistake in the path, or where the volume is mounted", unix.ENOENT)
	}
	return uds.Explain(path, err)
}

// socket inspects a socket by a name that fits connect(2). It asks the kernel
// first, so that the counts do not include its own connection.
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

// connect tries each type and reads the other end's credentials. A wrong type
// fails with EPROTOTYPE, unix(7). A socket that is bound and does not listen
// refuses only its own type. If no process has the socket open, the file has
// no type. ECONNREFUSED is returned for abstract names only, because each type
// has its own abstract names.
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
		case err == unix.EPERM && t.name == uds.Datagram: // connect(2), if the socket itself is connected to another
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
		return unix.EPROTOTYPE // a type that unix(7) does not have, or replaced meanwhile
	}
	return nil
}

// ask asks a connected socket about the other end.
func (in *Result) ask(fd int) error {
	if in.Type == uds.Datagram { // SO_PEERCRED would return -1, -1 and 0
		// poll(2) reports whether the other end's queue is full.
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
	if cred.Pid != 0 { // the name is missing if /proc hides other users' processes
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
		in.Process = string(bytes.TrimSuffix(comm, []byte("\n")))
	}
	return nil
}

// told copies what sock_diag(7) reported.
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

// types are those of unix(7), in the order in which connect tries them.
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

// Kind returns the file type of a file mode in words.
func Kind(mode uint32) string { return kinds[mode&unix.S_IFMT].words }

// UserName returns the name of a user, or the number if it has none.
func UserName(id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	if u, err := user.LookupId(n); err == nil {
		return u.Username
	}
	return n
}

// GroupName returns the name of a group, or the number if it has none.
func GroupName(id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	if g, err := user.LookupGroupId(n); err == nil {
		return g.Name
	}
	return n
}
