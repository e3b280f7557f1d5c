//go:build linux

// Package raw makes the system calls that every message needs, without telling
// the Go scheduler: announcing a call that may block costs a good part of the
// call itself, and none of these calls blocks. The descriptors are
// non-blocking. [Retry] is for other calls.
package raw

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const noBlock = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

// Read is read(2).
func Read(fd int, p []byte) (int, error) {
	return result(unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))))
}

// Send is send(2). It raises no SIGPIPE.
func Send(fd int, p []byte) (int, error) { return SendTo(fd, p, "") }

// SendTo is sendto(2), to a socket address in the kernel's form; "" means the
// other end of a connection.
func SendTo(fd int, p []byte, to string) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), noBlock,
		uintptr(unsafe.Pointer(unsafe.StringData(to))), uintptr(len(to))))
}

// SendMessage is sendmsg(2). It raises no SIGPIPE.
func SendMessage(fd int, message *unix.Msghdr) (int, error) {
	return result(unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(message)), noBlock))
}

// Receive is recvmsg(2).
func Receive(fd int, message *unix.Msghdr, flags int) (int, error) {
	return result(unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(message)), uintptr(flags|unix.MSG_DONTWAIT)))
}

// Accept is accept4(2); the connection is non-blocking. It does not return the
// client's address, because it is rarely needed.
func Accept(fd int) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0))
}

// PeerName is getpeername(2) and returns the size of the address.
func PeerName(fd int, sa *unix.RawSockaddrAny) (size uint32, err error) {
	size = unix.SizeofSockaddrAny
	_, err = result(unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&size))))
	return size, err
}

// PeerGroups fills groups with the supplementary groups of the other end of a
// connection, and returns their number in any case. If they do not fit, the error
// is ERANGE.
func PeerGroups(fd int, groups []uint32) (n int, err error) {
	size := uint32(4 * len(groups))
	_, err = result(unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0))
	return int(size / 4), err
}

// Wait is epoll_wait(2), with a timeout in milliseconds, -1 for none. Until it
// returns, other goroutines cannot use the processor. The Go scheduler ends it
// (EINTR) for a garbage collection, and in any case some milliseconds after 10,
// but never with GODEBUG=asyncpreemptoff=1.
func Wait(epoll int, events []unix.EpollEvent, timeout int) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(timeout), 0, 0))
}

func result(n, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// Retry repeats a system call as long as a signal interrupts it.
func Retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// Again is [Retry] of a call that returns nothing else.
func Again(call func() error) error {
	_, err := Retry(func() (struct{}, error) { return struct{}{}, call() })
	return err
}
