package uds

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
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

// An Inspection is what can be found out about a path. What is not known is nil
// or empty.
type Inspection struct {
	Kind  string `json:"kind"`  // the file's type in words, of what a symbolic link leads to
	Type  Type   `json:"type"`  // the socket's
	State State  `json:"state"` // the socket's

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
}

// Inspect says what is at a path, or behind an abstract name, @NAME. It
// connects once, which the server sees as a client that says nothing; datagram
// servers do not see it. It comes with an error and an Inspection both where it
// remains unknown whether a socket is served.
func Inspect(path string) (*Inspection, error) {
	in, err := inspect(path)
	if err == nil {
		return in, nil
	}
	if in != nil && in.State != Unknown {
		in = nil
	}
	return in, fmt.Errorf("inspect %s: %w", path, err)
}

func inspect(path string) (*Inspection, error) {
	if path == "" || path == "@" {
		return nil, fmt.Errorf("%w: the path is empty", ErrAddress)
	}
	if (Addr{Stream, path}).Abstract() {
		if err := checkPath(path); err != nil {
			return nil, err
		}
		in := &Inspection{Kind: "abstract socket"}
		return in, in.socket(path, path, func(s diagSocket) bool { return s.isAbstract(path) })
	}
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	var st unix.Stat_t
	switch {
	case err == unix.ENOENT && unix.Lstat(path, &st) == nil: // a link that leads to nothing
		return &Inspection{Kind: kind(st.Mode)}, nil
	case err == unix.ENOENT:
		return nil, fmt.Errorf("%w (ENOENT): nothing is there: look for a mistake in the path, or where the volume is mounted", err)
	case err != nil:
		return nil, explain(path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	in := &Inspection{Kind: kind(st.Mode)}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return in, nil
	}
	// The descriptor's path leads to this very file, whatever becomes of its
	// name, and fits sun_path however long the name is.
	return in, in.socket(path, fmt.Sprintf("/proc/self/fd/%d", fd), func(s diagSocket) bool { return s.isFile(&st) })
}

// socket inspects a socket: path is for people, name for connect(2). The kernel
// is asked first, so that what it counts is not our own connection.
func (in *Inspection) socket(path, name string, is func(diagSocket) bool) error {
	all, diagErr := diagnose()
	err := in.connect(name)
	var found *diagSocket
	for i, s := range all {
		if is(s) && s.serves() && (in.Type == "" || int(s.sotype) == in.Type.sotype()) {
			found = &all[i]
		}
	}
	switch {
	case err == unix.EACCES && found != nil:
		in.Type, in.State = typeOf(found.sotype), Live
		if in.Type == Datagram && found.state == stateEstablished {
			in.State = Private
		}
	case err == unix.EACCES:
		in.State = Unknown
		return fmt.Errorf("cannot tell whether it is served: %w", explain(path, err))
	case err == unix.ECONNREFUSED && name == path && slices.ContainsFunc(all, is):
		in.State = Bound
	case err != nil:
		return explain(path, err)
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

// connect tries each type, as probe does, and asks who is there. A socket that
// is bound and does not listen refuses its own type alone; behind the file of
// one that is gone nothing has a type. ECONNREFUSED is for abstract names only,
// which each type has of its own.
func (in *Inspection) connect(name string) error {
	var refused []Type
	for _, t := range types {
		fd, err := connected(t, name)
		switch err {
		case unix.EPROTOTYPE:
			continue
		case unix.ECONNREFUSED:
			refused = append(refused, t)
			continue
		case nil:
			in.Type, in.State = t, Live
			err = in.ask(fd)
			_ = unix.Close(fd)
			return err
		case unix.EAGAIN:
			in.Type, in.State, in.Full = t, Live, new(true)
			return nil
		case unix.EPERM:
			if t == Datagram { // connect(2), of a socket that is connected itself
				in.Type, in.State = t, Private
				return nil
			}
		}
		return err
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
func (in *Inspection) ask(fd int) error {
	if in.Type == Datagram { // SO_PEERCRED would give -1, -1 and 0
		// poll(2) waits for the other end's queue.
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := retry(func() (int, error) { return unix.Poll(events, 0) })
		in.Full = new(n == 0)
		return os.NewSyscallError("poll", err)
	}
	in.Full = new(false)
	cred, err := PeerCred(fd)
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
func (in *Inspection) told(s *diagSocket) {
	if in.UID == nil {
		in.UID = s.uid
	}
	if in.UID == nil {
		in.NotTold = "sock_diag has no owners before Linux 5.3"
	}
	if in.Type == Datagram {
		in.NextBytes = s.queue
		return
	}
	in.Waiting, in.Backlog = s.queue, s.limit
	if s.queue != nil && s.limit != nil {
		in.Full = new(*s.queue > *s.limit)
	}
}

func typeOf(sotype uint8) Type {
	i := slices.IndexFunc(types, func(t Type) bool { return t.sotype() == int(sotype) })
	if i < 0 {
		return ""
	}
	return types[i]
}
