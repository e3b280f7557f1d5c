//go:build linux

package sock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ListenConfig configures how to listen. Its zero value works.
type ListenConfig struct {
	// Mode is the socket file's permission bits. Any process with write
	// permission can connect, unix(7), "Pathname socket ownership and
	// permissions". [DefaultMode] leaves the mode to the umask.
	Mode fs.FileMode
	// Backlog is the number of connections that may wait to be accepted,
	// listen(2); 0 means as many as the system allows.
	Backlog int
	// SendBuffer is SO_SNDBUF in bytes as the kernel counts them, socket(7); a
	// message may be [Overhead] less. 0 leaves the system's default. The
	// connections that a seqpacket socket accepts do not inherit it, see
	// [SetSendBuffer].
	SendBuffer int
	// Control, if not nil, sets options of the socket for an address before it is
	// bound. For a socket that comes from another process, it does so before the
	// socket is served.
	Control func(a Addr, fd int) error
}

// A Socket is a bound socket with the files that it owns: the socket file and
// its lock. Stream and seqpacket sockets are already listening.
type Socket struct {
	addr   Addr
	fd     int // -1 once closed
	config ListenConfig
	file   *file
	lock   *lock
	shared bool // other processes have the socket too, and own its files
}

func newSocket(a Addr) *Socket { return &Socket{fd: -1, addr: a} }

// Listen makes a socket at a. It locks the path, checks it, removes a stale
// socket, binds, sets the mode and listens. For datagram sockets, the kernel
// adds the sender's credentials to each message, unix(7), SO_PASSCRED. The
// error names the address and the cure. It is an [ErrNotSocket] if the file at
// the path is not a socket, and an [ErrInUse] if a server is running there.
func (c ListenConfig) Listen(a Addr) (*Socket, error) {
	s := newSocket(a)
	s.config = c
	if err := c.listen(s); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	return s, nil
}

func (c ListenConfig) listen(s *Socket) (err error) {
	if err := CheckPath(s.addr.Path); err != nil {
		return err
	}
	if s.fd, err = socket(s.addr.Type); err != nil {
		return err
	}
	if err := c.prepare(s); err != nil {
		return err
	}
	if s.addr.Abstract() {
		err = unix.Bind(s.fd, &unix.SockaddrUnix{Name: s.addr.Path})
		if err == unix.EADDRINUSE {
			return fmt.Errorf("%w: a server has the abstract name %s; stop it first or choose another", ErrInUse, s.addr.Path)
		}
		if err != nil {
			return os.NewSyscallError("bind", err)
		}
		return c.start(s)
	}
	if s.lock == nil { // otherwise it comes from the socket that this one replaces
		if s.lock, err = lockPath(s.addr.Path); err != nil {
			return err
		}
	}
	if err := removeStale(s.addr.Path); err != nil {
		return err
	}
	s.file, err = bindFile(s.fd, s.addr.Path, c.Mode, func() error { return c.start(s) })
	// A server of another user that could not open the lock may have removed
	// it, see [removeLock]. So a server that has lost its lock before it had
	// its socket gives way, and at most one serves: any later server finds the
	// socket served.
	if err == nil && !s.lock.isAt(s.lock.name) {
		return fmt.Errorf("%w: another server has replaced %s", ErrInUse, s.lock.name)
	}
	return err
}

// prepare sets what must be set before any client can send: a message that
// arrives earlier would have no credentials.
func (c ListenConfig) prepare(s *Socket) error {
	if s.addr.Type == Datagram {
		if err := PassCred(s.fd); err != nil {
			return err
		}
	}
	if c.SendBuffer > 0 {
		if err := SetSendBuffer(s.fd, c.SendBuffer); err != nil {
			return err
		}
	}
	if c.Control != nil {
		return c.Control(s.addr, s.fd)
	}
	return nil
}

func (c ListenConfig) start(s *Socket) error {
	if s.addr.Type == Datagram {
		return nil
	}
	err := unix.Listen(s.fd, backlogOrMax(c.Backlog))
	if err == unix.EINVAL {
		return fmt.Errorf("listen: %w (EINVAL): the socket is a connection already; pass the listening one, Accept=no in a systemd unit", err)
	}
	return os.NewSyscallError("listen", err)
}

// adopt applies this configuration to a socket that another process made.
// Calling listen(2) again makes this process the one that clients see as the
// server, see [PeerCred].
func (c ListenConfig) adopt(s *Socket) error {
	if c.Mode != DefaultMode && s.file != nil {
		if err := s.file.chmod(c.Mode); err != nil {
			return err
		}
	}
	if err := c.prepare(s); err != nil {
		return err
	}
	return c.start(s)
}

// Inherit makes a Socket from a descriptor that the parent process passed on,
// for example by systemd's protocol, sd_listen_fds(3). It reads type and
// address from the socket. The socket file belongs to the parent: closing does
// not remove it. Inherit takes over fd, even if it fails.
func (c ListenConfig) Inherit(fd int) (*Socket, error) {
	s := newSocket(Addr{})
	s.fd, s.shared = fd, true
	unix.CloseOnExec(fd)
	err := s.identify()
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	if err == nil {
		err = c.adopt(s)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// identify finds the address of a socket that another process made.
func (s *Socket) identify() error {
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("it is not a socket: %w", err)
	}
	sotype, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_TYPE", err)
	}
	name, ok := sa.(*unix.SockaddrUnix)
	if !ok {
		return errors.New("it is not a Unix socket; pass one, ListenStream=/path in a systemd unit")
	}
	s.addr = Addr{TypeOf(sotype), name.Name}
	if s.addr.Path == "@" || s.addr.Path == "" { // how package unix shows an unnamed socket
		return errors.New("it is a socket without an address; pass one that is bound")
	}
	return nil
}

func backlogOrMax(backlog int) int {
	if backlog == 0 {
		return unix.SOMAXCONN
	}
	return backlog
}

// Unlink removes the socket file, if it is still the one that this socket
// made, and releases its lock. Connected clients stay connected.
func (s *Socket) Unlink() {
	if s.shared { // the files belong to another process
		s.lock.release()
	} else {
		s.file.remove()
		s.lock.unlock()
	}
	s.file, s.lock = nil, nil
}

// Addr returns the address to which the socket is bound.
func (s *Socket) Addr() Addr { return s.addr }

// FD returns the socket's descriptor, which is non-blocking and close-on-exec
// and stays the socket's own; -1 once it is closed.
func (s *Socket) FD() int { return s.fd }

// Is reports whether st describes the socket file of this socket.
func (s *Socket) Is(st *unix.Stat_t) bool { return s.file != nil && s.file.is(st) }

// Lost reports whether clients can no longer connect because the socket file
// was removed or replaced since this socket made it. It is not lost while `uds
// tap` passes the clients on, and comes back if that has died.
func (s *Socket) Lost() bool {
	if s.file == nil {
		return false
	}
	at := s.file.at()
	if at != "" && at != s.file.path && !IsOpen(s.file.path, s.addr.Type) {
		_ = unix.Rename(at, s.file.path) // fails if the tap's guard has done it
		at = s.file.at()
	}
	return at == ""
}

// Tapped reports whether `uds tap` has put its own socket in the place of this
// one.
func (s *Socket) Tapped() bool {
	if s.file == nil {
		return false
	}
	at := s.file.at()
	return at != "" && at != s.file.path
}

// Renew makes a new socket in place of one whose file is [Socket.Lost].
// Clients that are connected to s, or send to it, are not affected; s owns no
// files afterwards. The error is an [ErrInUse] or [ErrNotSocket] if something
// else is at the path now; Renew leaves that alone. After any other error,
// Renew can be called again.
func (s *Socket) Renew() (*Socket, error) {
	n := newSocket(s.addr)
	n.config = s.config
	if s.file != nil && absolute(s.addr.Path) != s.file.path { // this process has changed its directory since
		n.addr.Path = s.file.path
	}
	if s.lock != nil && s.lock.isAt(s.lock.name) {
		n.lock = s.lock
	}
	if err := n.config.listen(n); err != nil {
		if n.lock == s.lock {
			n.lock = nil
		}
		_ = n.Close()
		return nil, fmt.Errorf("listen again on %s: %w", s.addr, err)
	}
	if n.lock != s.lock {
		s.lock.release()
	}
	s.file, s.lock = nil, nil
	return n, nil
}

// Shared reports whether another process serves the socket too, or will: that
// process will accept the connections that this one has not accepted.
func (s *Socket) Shared() bool { return s.shared }

// Refuse rejects further clients. Clients that have connected already can
// still be accepted: accept(2) returns them and then EAGAIN. So no waiting
// client is lost. A shared socket is left alone, because another process
// serves it too.
func (s *Socket) Refuse() error {
	if s.shared {
		return nil
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(s.fd, unix.SHUT_RD))
}

// Close unlinks and closes the socket.
func (s *Socket) Close() error {
	s.Unlink()
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return os.NewSyscallError("close", err)
}

// closeFD closes the descriptor, unless it is -1, and sets it to -1.
func closeFD(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
		*fd = -1
	}
}
