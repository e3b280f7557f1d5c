//go:build linux

package why

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// From linux/unix_diag.h and linux/sock_diag.h; sock_diag(7) explains them.
const (
	attrName, attrVFS, attrPeer, attrWaiting, attrQueue, attrUID = 0, 1, 2, 3, 4, 7

	// One bit for each attribute; the owner's is not that of its number.
	showAll     uint32 = 1<<attrName | 1<<attrVFS | 1<<attrPeer | 1<<attrQueue | 1<<6
	showWaiting uint32 = 1 << attrWaiting

	diagRequestSize, diagMessageSize        = 24, 16
	allStates                        uint32 = 1<<32 - 1
	anyCookie                        uint64 = 1<<64 - 1 // INET_DIAG_NOCOOKIE, twice

	// The states of TCP, which AF_UNIX uses too.
	Listening   = 10 // TCP_LISTEN
	Established = 1  // TCP_ESTABLISHED
)

// A Socket is the information that sock_diag(7) returns about a socket of
// AF_UNIX.
type Socket struct {
	SoType, State uint8  // SOCK_STREAM, ...; TCP_LISTEN, TCP_ESTABLISHED or TCP_CLOSE
	Number        uint32 // the inode number of the open socket, as in socket:[N]
	Name          string // as it was bound, with the leading NUL of an abstract name
	File          File   // to which it was bound; zero without a file
	// The number of the socket that it is connected to: 0 if it is not, if the
	// other end is closed, or waits to be accepted.
	Peer uint32
	// For a listening socket: the connections that wait, and the backlog. For
	// a datagram socket: the bytes of the next message, and the bytes that it
	// has sent and no process has read. For a connected one: the bytes that it
	// has not read, and those that it has sent and its peer has not read. nil
	// if the kernel did not report them.
	Queue, Limit *uint32
	UID          *uint32 // its owner; since Linux 5.3
	waiting      []uint32
}

// A File is the file of a socket, as the kernel numbers it: see [IsFile].
type File struct{ dev, ino uint32 }

// Sockets asks the kernel for all AF_UNIX sockets in the caller's network
// namespace; the kernel does not report those of other namespaces. It needs no
// privilege.
func Sockets() ([]Socket, error) { return diagnose(0, showAll) }

// Waiting returns the numbers of the client sockets that wait for a listening
// socket to accept them: 0 for a client that has closed its socket. The kernel
// answers about a thousand of them at most, otherwise with EMSGSIZE. In the
// answer about all sockets they would be dangerous: if the first socket has
// many, the kernel ends the list before it.
func Waiting(listener uint32) ([]uint32, error) {
	all, err := diagnose(listener, showWaiting)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0].waiting, nil
}

// IsBoundTo reports whether the open socket fd was bound to the file. Unlike
// the file's owner, this is the same on every file system. The error is that of
// sock_diag(7), if the kernel does not tell.
func IsBoundTo(fd int, file *unix.Stat_t) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	all, err := diagnose(uint32(st.Ino), showAll)
	if err != nil {
		return false, err
	}
	return len(all) == 1 && all[0].File.ino == uint32(file.Ino), nil
}

// diagnose asks for one socket by its inode number, or, with 0, for all.
func diagnose(number, show uint32) ([]Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()

	const size = unix.NLMSG_HDRLEN + diagRequestSize
	flags := uint16(unix.NLM_F_REQUEST)
	if number == 0 {
		flags |= unix.NLM_F_DUMP
	}
	request := binary.NativeEndian.AppendUint32(make([]byte, 0, size), size)
	request = binary.NativeEndian.AppendUint16(request, unix.SOCK_DIAG_BY_FAMILY)
	request = binary.NativeEndian.AppendUint16(request, flags)
	request = append(request, make([]byte, 8)...)    // nlmsg_seq, nlmsg_pid
	request = append(request, unix.AF_UNIX, 0, 0, 0) // sdiag_family, sdiag_protocol, pad
	request = binary.NativeEndian.AppendUint32(request, allStates)
	request = binary.NativeEndian.AppendUint32(request, number) // udiag_ino
	request = binary.NativeEndian.AppendUint32(request, show)
	request = binary.NativeEndian.AppendUint64(request, anyCookie)
	if err := raw.Again(func() error { return unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	var all []Socket
	for buf := make([]byte, 64<<10); ; { // the kernel sends at most 32 KiB at once
		var n int
		if err := raw.Again(func() (err error) { n, _, err = unix.Recvfrom(fd, buf, unix.MSG_TRUNC); return err }); err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		if n > len(buf) {
			return nil, fmt.Errorf("an answer of %d bytes, %d were expected at most", n, len(buf))
		}
		some, done, err := parseDiag(buf[:n])
		if err != nil {
			return nil, err
		}
		if all = append(all, some...); done || number != 0 {
			return all, nil
		}
	}
}

// parseDiag parses one answer of the kernel; done reports that it was the
// last.
func parseDiag(b []byte) (sockets []Socket, done bool, err error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, false, fmt.Errorf("a malformed answer: %w", err)
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return sockets, true, nil
		case unix.NLMSG_ERROR:
			if len(m.Data) < 4 {
				return nil, false, fmt.Errorf("a malformed answer: an error of %d bytes", len(m.Data))
			}
			return nil, false, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
		case unix.SOCK_DIAG_BY_FAMILY:
			s, err := parseSocket(m.Data)
			if err != nil {
				return nil, false, err
			}
			sockets = append(sockets, s)
		}
	}
	return sockets, false, nil
}

func parseSocket(b []byte) (s Socket, err error) {
	if len(b) < diagMessageSize {
		return s, fmt.Errorf("a malformed answer: a socket of %d bytes", len(b))
	}
	s.SoType, s.State, s.Number = b[1], b[2], binary.NativeEndian.Uint32(b[4:])
	for b = b[diagMessageSize:]; len(b) >= unix.SizeofNlAttr; {
		size, attr := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofNlAttr || size > len(b) {
			return s, fmt.Errorf("a malformed answer: an attribute of %d bytes where %d are left", size, len(b))
		}
		value := b[unix.SizeofNlAttr:size]
		number := func(i int) *uint32 {
			if len(value) < 4*(i+1) {
				return nil
			}
			n := binary.NativeEndian.Uint32(value[4*i:])
			return &n
		}
		switch attr {
		case attrName:
			s.Name = string(value)
		case attrVFS:
			if ino, dev := number(0), number(1); dev != nil {
				s.File = File{*dev, *ino}
			}
		case attrPeer:
			if peer := number(0); peer != nil {
				s.Peer = *peer
			}
		case attrWaiting:
			for i := range len(value) / 4 {
				s.waiting = append(s.waiting, *number(i))
			}
		case attrQueue:
			s.Queue, s.Limit = number(0), number(1)
		case attrUID:
			s.UID = number(0)
		}
		b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return s, nil
}

// Serves reports whether a process accepts connections or receives messages
// there. Accepted connections have the listening socket's name and file too.
func (s Socket) Serves() bool {
	return s.State == Listening || s.SoType == unix.SOCK_DGRAM
}

// IsFile reports whether the socket was bound to the file that the descriptor
// fd, which may be an O_PATH one, has open.
//
// sock_diag has the device of the file system, and so has mountinfo. stat(2)
// has another one on btrfs, for each subvolume, and on overlayfs.
func IsFile(fd int) func(Socket) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return func(Socket) bool { return false }
	}
	dev := st.Dev
	if m, _ := mountOf(fd); m.dev != 0 {
		dev = m.dev
	}
	// The kernel writes the device as 12 bits and 20 bits, and the lower half
	// of the inode's number.
	return func(s Socket) bool {
		return s.File == File{unix.Major(dev)<<20 | unix.Minor(dev), uint32(st.Ino)}
	}
}

// IsAbstract reports whether the socket was bound to the abstract name, @NAME.
func (s Socket) IsAbstract(name string) bool {
	return len(s.Name) > 0 && s.Name[0] == 0 && s.Name[1:] == name[1:]
}
