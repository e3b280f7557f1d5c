package uds

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// ListenConfig says how to listen. Its zero value works.
type ListenConfig struct {
	// Mode is the socket file's permission bits; who may write may connect,
	// unix(7), "Pathname socket ownership and permissions". [DefaultMode]
	// leaves it to the umask.
	Mode fs.FileMode
	// Backlog is how many connections may wait to be accepted, listen(2);
	// 0 means as many as the system allows.
	Backlog int
	// SendBuffer is SO_SNDBUF in bytes as the kernel counts them, socket(7); a
	// message may be 32 bytes less. 0 leaves the system's. The connections
	// that a seqpacket socket accepts do not inherit it, see [SetSendBuffer].
	SendBuffer int
}

// A Socket is a bound socket with the files that it owns: the socket file and
// its lock. Sockets of the types that connect are listening.
type Socket struct {
	FD   int // non-blocking, close-on-exec; -1 once closed
	Addr Addr

	file *file
	lock *flock.Flock
}

// Listen makes a socket at a: lock, look, remove what is stale, bind, set the
// mode, listen. The messages of a datagram socket come with credentials, see
// [Receiver.ReceiveCred]. The error names the address and the cure; it is an
// [ErrNotSocket] where something else is at the path and an [ErrInUse] where a
// server is.
func (c ListenConfig) Listen(a Addr) (*Socket, error) {
	s := &Socket{FD: -1, Addr: a}
	if err := c.listen(s); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	return s, nil
}

func (c ListenConfig) listen(s *Socket) (err error) {
	if !s.Addr.Type.Unix() {
		s.FD, err = listenInternet(s.Addr, c.Backlog)
		return err
	}
	if err := checkLength(s.Addr.Path); err != nil {
		return err
	}
	if s.FD, err = socket(s.Addr.Type); err != nil {
		return err
	}
	if s.Addr.Type == Datagram {
		// Before anybody can send: later, what waits already has no sender.
		if err := PassCred(s.FD); err != nil {
			return err
		}
	}
	if c.SendBuffer > 0 {
		if err := SetSendBuffer(s.FD, c.SendBuffer); err != nil {
			return err
		}
	}
	if s.Addr.Abstract() {
		err = unix.Bind(s.FD, &unix.SockaddrUnix{Name: s.Addr.Path})
		if err == unix.EADDRINUSE {
			return fmt.Errorf("%w: a server has the abstract name %s: stop it first or choose another", ErrInUse, s.Addr.Path)
		}
		if err != nil {
			return os.NewSyscallError("bind", err)
		}
	} else {
		if s.lock, err = lockPath(s.Addr.Path); err != nil {
			return err
		}
		if err := removeStale(s.Addr.Path); err != nil {
			return err
		}
		if s.file, err = bindFile(s.FD, s.Addr.Path, c.Mode); err != nil {
			return err
		}
	}
	if s.Addr.Type == Datagram {
		return nil
	}
	return os.NewSyscallError("listen", unix.Listen(s.FD, backlogOrMax(c.Backlog)))
}

func backlogOrMax(backlog int) int {
	if backlog == 0 {
		return unix.SOMAXCONN
	}
	return backlog
}

// listenInternet lets package net find the address, and takes its socket.
func listenInternet(a Addr, backlog int) (fd int, err error) {
	var l interface {
		syscall.Conn
		io.Closer
	}
	if a.Type == TCP {
		var n net.Listener
		if n, err = net.Listen("tcp", a.Path); err == nil {
			l = n.(*net.TCPListener)
		}
	} else {
		var n net.PacketConn
		if n, err = net.ListenPacket("udp", a.Path); err == nil {
			l = n.(*net.UDPConn)
		}
	}
	if err != nil {
		return -1, err
	}
	defer func() { _ = l.Close() }()
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctrlErr := raw.Control(func(theirs uintptr) {
		if fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0); err == nil && a.Type == TCP {
			err = unix.Listen(fd, backlogOrMax(backlog)) // again: package net does not ask how many
		}
	})
	return fd, errors.Join(ctrlErr, err)
}

// Unlink removes the socket file, if it is still the one that this socket
// made, and gives up its lock. Who has connected stays connected.
func (s *Socket) Unlink() {
	s.file.remove()
	unlockPath(s.lock)
	s.file, s.lock = nil, nil
}

// Refuse turns further clients away, while those that have connected already
// can still be accepted: accept(2) gives them and then EAGAIN. So nobody who
// was let in is lost.
// (Internet sockets know no such half-way; nothing is done.)
func (s *Socket) Refuse() error {
	if !s.Addr.Type.Unix() {
		return nil
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(s.FD, unix.SHUT_RD))
}

// Close unlinks and closes the socket.
func (s *Socket) Close() error {
	s.Unlink()
	if s.FD < 0 {
		return nil
	}
	err := unix.Close(s.FD)
	s.FD = -1
	return os.NewSyscallError("close", err)
}

// Listener gives the socket, one of a type that connects, to package net. It
// takes the socket over: closing the listener closes the socket.
func (s *Socket) Listener() (net.Listener, error) {
	fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), s.Addr.String())
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &listener{l, s}, nil
}

// A listener closes the files that package net does not know about.
type listener struct {
	net.Listener
	socket *Socket
}

// SetDeadline ends a wait in Accept, as with a listener of package net.
func (l *listener) SetDeadline(t time.Time) error {
	return l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(t)
}

func (l *listener) Close() error {
	return errors.Join(l.Listener.Close(), l.socket.Close())
}
