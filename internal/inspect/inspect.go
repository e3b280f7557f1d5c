// Package inspect inspects the file at a path: its type, mode and owner. For a
// socket, it also finds out whether the socket is served, by which user and
// process, and how many connections wait there. It connects once, and asks
// sock_diag(7).
//
// A [Collector] collects all sockets of the machine that are served, and joins
// each with its clients: sock_diag(7) in each network namespace has the sockets
// (namespaces.go), /proc the processes that have them open (processes.go), their
// control groups the containers (containers.go).
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
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/why"
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
	Path  string    `json:"path"`
	Row   string    `json:"row"`   // type, mode, owner, group and path as ls(1) writes them; "" for an abstract name
	Kind  string    `json:"kind"`  // the file's type in words; for a symbolic link, that of its target
	Type  sock.Type `json:"type"`  // the socket's
	State State     `json:"state"` // the socket's

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

	Connections []Connection `json:"connections"` // nil if See has not found the socket

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
		reasons, readOnly := why.Path(path, in.State == Live || in.State == Private)
		in.Why, in.ReadOnly = append(in.Why, reasons...), readOnly
		if text := sock.KilledTap(path); in.State == Stale && text != "" {
			in.Why = append(in.Why, text)
		}
	}
	if err == nil {
		return in, nil
	}
	if in != nil && in.State != Unknown {
		in = nil
	}
	return in, fmt.Errorf("inspect %s: %w", path, err)
}

// See completes the result with the connections of the socket, and with what
// sock_diag(7) reports only in its network namespace, if it is among those that a
// [Collector] has collected, better before Path: that connects, too. It returns
// the socket, nil if it is not among them.
func (in *Result) See(all []*Socket) *Socket {
	pick, err := At(in.Path)
	var here unix.Stat_t
	if err != nil || in.State != Live && in.State != Private || unix.Stat("/proc/thread-self/ns/net", &here) != nil {
		return nil
	}
	for _, s := range all {
		if s = pick(s); s != nil && (in.Path[0] != '@' || s.Namespace == here.Ino) {
			in.Connections = s.Connections
			if in.Waiting == nil && in.NextBytes == nil && in.Kind != "open socket" && s.Server != nil { // it belongs to another network namespace
				in.NotTold, in.Waiting, in.Backlog = "", s.Waiting, s.Backlog
				if in.Type == sock.Datagram {
					in.UID, in.NextBytes = s.Server.UID, s.Server.Unread
				}
			}
			return s
		}
	}
	return nil
}

func inspect(path string) (*Result, error) {
	in := &Result{Path: path, Why: []string{}}
	switch {
	case path == "" || path == "@":
		return nil, fmt.Errorf("%w: the path is empty", sock.ErrAddress)
	case path[0] == '@' && len(path) > sock.MaxPath:
		return nil, fmt.Errorf("%w: path is %d bytes, sun_path holds %d", sock.ErrAddress, len(path), sock.MaxPath)
	case path[0] == '@':
		in.Kind = "abstract socket"
		return in, in.socket(path, func(s why.Socket) bool { return s.IsAbstract(path) })
	}
	// The row comes first: the server may serve only one client, which is this
	// inspection, and then end and remove its file.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return in.unseen(err)
	}
	in.Kind = why.Kind(st.Mode)
	in.Row = fmt.Sprintf("%s%s %s %s %s", letters[st.Mode&unix.S_IFMT], fs.FileMode(st.Mode).Perm().String()[1:],
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
	in.Kind = why.Kind(st.Mode)
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return in, nil
	}
	if why.IsOpenSocket(int(file.Fd())) {
		return in, in.open(uint32(st.Ino))
	}
	// The descriptor's path leads to this very file, even if its name changes,
	// and fits sun_path even if the name is long.
	return in, in.socket(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), why.IsFile(int(file.Fd())))
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
	return sock.Explain(path, err)
}

// socket inspects a socket by a name that fits connect(2). It asks the kernel
// first, so that the counts do not include its own connection.
func (in *Result) socket(name string, is func(why.Socket) bool) error {
	all, diagErr := why.Sockets()
	err := in.connect(name)
	var found *why.Socket
	for i, s := range all {
		if is(s) && s.Serves() && (in.Type == "" || sock.TypeOf(int(s.SoType)) == in.Type) {
			found = &all[i]
		}
	}
	switch {
	case err == unix.EACCES && found != nil:
		in.Type, in.State = sock.TypeOf(int(found.SoType)), Live
		if in.Type == sock.Datagram && found.State == why.Established {
			in.State = Private
		}
	case err == unix.EACCES:
		in.State = Unknown
		return fmt.Errorf("cannot tell whether it is served: %w", sock.Explain(in.Path, err))
	case err == unix.ECONNREFUSED && name == in.Path && slices.ContainsFunc(all, is):
		in.State = Bound
	case err != nil:
		return sock.Explain(in.Path, err)
	}
	switch {
	case in.State != Live && in.State != Private:
	case diagErr != nil:
		in.NotTold = fmt.Sprintf("sock_diag: %v", diagErr)
	case found == nil:
		in.NotTold = "sock_diag does not list this socket; it lists those of this network namespace only"
	default:
		in.told(found)
	}
	return nil
}

// connect connects once, and reads the other end's credentials. ECONNREFUSED is
// returned for abstract names only: if no process has the socket of a file open,
// the file has no type.
func (in *Result) connect(name string) error {
	t, err := sock.Probe(name, in.ask)
	switch {
	case err == nil:
		in.State = Live
	case err == unix.EAGAIN:
		in.State, in.Full = Live, new(true)
	case err == unix.EPERM && t == sock.Datagram: // connect(2), if the socket itself is connected to another
		in.State = Private
	case err == sock.ErrBound:
		in.State = Bound
	case err == unix.ECONNREFUSED && name[0] != '@':
		in.State = Stale
	default:
		return err
	}
	in.Type = t
	return nil
}

// ask asks a connected socket about the other end.
func (in *Result) ask(t sock.Type, fd int) error {
	if t == sock.Datagram { // SO_PEERCRED would return -1, -1 and 0
		events, err := sock.Poll(fd, unix.POLLOUT) // whether the other end's queue is full
		in.Full = new(events == 0)
		return os.NewSyscallError("poll", err)
	}
	in.Full = new(false)
	cred, err := sock.PeerCred(fd)
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

// open inspects a socket that a process has open, /proc/PID/fd/N, by the
// number that the kernel gave it. Connecting to that is always refused.
func (in *Result) open(number uint32) error {
	in.Kind = "open socket"
	all, err := why.Sockets()
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	i := slices.IndexFunc(all, func(s why.Socket) bool { return s.Number == number })
	if i < 0 {
		return fmt.Errorf("it is socket %d, which sock_diag does not list: it is not a Unix socket, or belongs to another network namespace", number)
	}
	s := &all[i]
	in.Type = sock.TypeOf(int(s.SoType))
	switch {
	case s.State == why.Established:
		in.State = Private
	case s.Serves():
		in.State = Live
	default:
		in.State = Bound
	}
	in.told(s)
	if name := strings.TrimSuffix(s.Name, "\x00"); name != "" {
		in.Why = append(in.Why, fmt.Sprintf("it is a process's open socket, not a file; its name is %s, which clients connect to", strings.Replace(name, "\x00", "@", 1)))
	}
	return nil
}

// told copies what sock_diag(7) reported.
func (in *Result) told(s *why.Socket) {
	if in.UID == nil {
		in.UID = s.UID
	}
	if in.UID == nil {
		in.NotTold = "sock_diag has no owners before Linux 5.3"
	}
	if in.Type == sock.Datagram {
		in.NextBytes = s.Queue
		return
	}
	if s.State != why.Listening {
		in.NotTold = "it does not listen"
		return
	}
	in.Waiting, in.Backlog = s.Queue, s.Limit
	if s.Queue != nil && s.Limit != nil {
		in.Full = new(*s.Queue > *s.Limit)
	}
}

// letters are the file types of inode(7), as ls(1) shows them.
var letters = map[uint32]string{
	unix.S_IFREG: "-", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFIFO: "p", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFSOCK: "s",
}

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

// Named returns a number with its name, if it has one.
func Named(id uint32, name func(uint32) string) string {
	n := strconv.FormatUint(uint64(id), 10)
	if s := name(id); s != n {
		n += " (" + s + ")"
	}
	return n
}
