//go:build linux

package sock

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Overhead is the part of the send buffer that unix(7) reserves: the largest
// message is SO_SNDBUF less 32 bytes.
const Overhead = 32

// MaxMessage returns the size in bytes of the largest message that any process
// without privileges can send on this system: twice net.core.wmem_max, which
// the kernel doubles, less the 32 bytes that it reserves.
func MaxMessage() int {
	wmem := 212992 // the kernel's default
	if text, err := os.ReadFile("/proc/sys/net/core/wmem_max"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			wmem = n
		}
	}
	return 2*wmem - Overhead
}

// SendLimit returns the size in bytes of the largest message that fd can send.
func SendLimit(fd int) (int, error) {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	return n - Overhead, os.NewSyscallError("getsockopt SO_SNDBUF", err)
}

// SetSendBuffer sets SO_SNDBUF of fd to n bytes, as the kernel counts them: it
// doubles the requested value. It is an error if the system allows less.
func SetSendBuffer(fd, n int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, (n+1)/2); err != nil {
		return os.NewSyscallError("setsockopt SO_SNDBUF", err)
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_SNDBUF", err)
	}
	if got < n {
		return fmt.Errorf("send buffer of %d bytes: the system allows %d; raise net.core.wmem_max", n, got)
	}
	return nil
}

// DefaultSendBuffer returns SO_SNDBUF of a new Unix socket, in bytes as the
// kernel counts them: net.core.wmem_default, socket(7).
func DefaultSendBuffer() int {
	n := 212992 // the kernel's default
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil {
			n = size
		}
		_ = unix.Close(fd)
	}
	return n
}

// PassCred makes the kernel add the sender's credentials to each message that
// fd receives, unix(7), SO_PASSCRED.
func PassCred(fd int) error {
	return os.NewSyscallError("setsockopt SO_PASSCRED", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
}

// InlineUrgent keeps the bytes that a peer sends with MSG_OOB, send(2), in
// their place in the stream. socket(7), SO_OOBINLINE: "otherwise, out-of-band
// data is passed only when the MSG_OOB flag is set during receiving". Without
// that flag they are lost. Unix sockets carry such bytes since Linux 5.15.
// Unlike TCP connections, Unix connections do not inherit the option from the
// listener.
func InlineUrgent(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) // every socket has this option
}

// DropAncillary turns off ancillary data that the parent process may have
// enabled, PassCredentials= in a systemd unit for example, and that this
// process does not receive. The kernel could not deliver such data, and
// reports that in the same way as descriptors that are not received.
// Connections inherit these options from their listening socket. Datagram
// sockets keep credentials on: a message that arrived while they were off
// would have none.
func DropAncillary(fd int) {
	if sotype, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || sotype != unix.SOCK_DGRAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 0)
	}
	for _, option := range []int{unix.SO_PASSSEC, unix.SO_PASSPIDFD, unix.SO_TIMESTAMP, unix.SO_TIMESTAMPNS} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 0) // some kernels do not know all of them
	}
}
