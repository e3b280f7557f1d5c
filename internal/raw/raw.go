// Package raw is the system calls on the way of every message, made without a
// word to the Go scheduler: to announce a call that may block costs a good part
// of what these do, and none of them blocks. The descriptors are non-blocking.
package raw

import (
	"syscall"
	"time"
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

// SendTo is sendto(2), to a socket address as the kernel has it; "": to the
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

// Accept is accept4(2); the connection is non-blocking. It does not ask who
// connects: most often nobody wants to know.
func Accept(fd int) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0))
}

// PeerName is getpeername(2), which returns the size of the address.
func PeerName(fd int, sa *unix.RawSockaddrAny) (size uint32, err error) {
	size = unix.SizeofSockaddrAny
	_, err = result(unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&size))))
	return size, err
}

// Wait is epoll_wait(2) with a timeout that is short: so long the processor is
// kept from other goroutines.
func Wait(epoll int, events []unix.EpollEvent, timeout time.Duration) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(timeout.Milliseconds()), 0, 0))
}

func result(n, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
