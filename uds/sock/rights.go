//go:build linux

package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// soPassRights is SO_PASSRIGHTS, of Linux 6.16, which lets a socket receive
// descriptors. If it is off, sendmsg(2) fails with EPERM at the other end. A
// connection inherits the option from the listening socket.
const soPassRights = 83

// RefuseRights makes the kernel refuse descriptors at a Unix socket of any
// type: sendmsg(2) fails with EPERM at the other end. Call it before listen(2)
// or connect(2): a connection inherits the option from the listening socket,
// but one that waits to be accepted does not. Kernels before Linux 6.16 do not
// know the option, see [RefusesRights].
func RefuseRights(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, soPassRights, 0) }

// CanRefuseRights reports whether the kernel knows [RefuseRights].
func CanRefuseRights() bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	RefuseRights(fd)
	return RefusesRights(fd)
}

// RefusesRights reports whether no descriptor can come through a socket,
// because the kernel refuses them or because it is a TCP socket. Then
// use [Receiver.Read].
func RefusesRights(fd int) bool {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	passes, passErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soPassRights)
	return err == nil && domain != unix.AF_UNIX || passErr == nil && passes == 0
}

// PeekRights reports whether descriptors come with the next message of a Unix
// socket. It leaves them there.
func PeekRights(fd int) bool {
	_, _, flags, err := peek(fd)
	return err == nil && flags&unix.MSG_CTRUNC != 0
}

// SendFiles sends a message, and with it descriptors of this process: to an
// address as [ReplyTo] does, or to the other end of a connection if to is "". The
// receiver gets new descriptors of the same open files, unix(7), SCM_RIGHTS. The
// sender may close its own right after the call. An empty message over a stream
// carries none.
//
// It returns how many bytes were sent: of a message over a stream it may be a
// part, which has all descriptors. The error is EAGAIN if there is no room.
func SendFiles(fd int, message []byte, fds []int, to Sender) (n int, err error) {
	if len(fds) == 0 {
		return raw.SendTo(fd, message, string(to))
	}
	rights := unix.UnixRights(fds...)
	iov := unix.Iovec{Base: unsafe.SliceData(message)}
	iov.SetLen(len(message))
	header := unix.Msghdr{Iov: &iov, Control: &rights[0]}
	header.SetIovlen(1)
	header.SetControllen(len(rights))
	if to != "" {
		header.Name, header.Namelen = unsafe.StringData(string(to)), uint32(len(to))
	}
	n, err = raw.SendMessage(fd, &header)
	switch err {
	case unix.EINVAL:
		err = fmt.Errorf("%w (EINVAL): %d descriptors: a message carries at most %d", err, len(fds), MaxRights)
	case unix.ETOOMANYREFS:
		err = fmt.Errorf("%w (ETOOMANYREFS): this user has as many descriptors in flight as one process may have open; wait until they are received", err)
	}
	return n, err
}

// ReceiveFiles receives the next message of a connection into buf, and with it
// at most limit descriptors. They are close-on-exec, and the caller closes them.
// cred are the sender's credentials, nil without [PassCred].
//
// The error is io.EOF at the end of the connection, and without [PassCred] for
// an empty record, which then looks the same; EAGAIN if there is no
// message, [ErrDescriptors] if more than limit descriptors came,
// [ErrOpenFiles], [ErrTruncated] if the message is larger than buf, or an
// errno of recvmsg(2). After an error no descriptor stays open.
func ReceiveFiles(fd int, buf []byte, limit int) (n int, fds []int, cred *unix.Ucred, err error) {
	// CmsgLen and not CmsgSpace, which is rounded up: the kernel would use the
	// padding for one more descriptor.
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgLen(4*limit))
	var used, flags int
	_, err = raw.Retry(func() (_ struct{}, err error) {
		n, used, flags, _, err = unix.Recvmsg(fd, buf, control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return
	})
	if err != nil {
		return 0, nil, nil, err
	}
	fds, cred, err = ParseControl(control[:used])
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0 && len(fds) < limit:
		err = fmt.Errorf("%w: the limit is reached; close some, or raise it", ErrOpenFiles)
	// Without credentials there is room for more descriptors than the limit.
	case flags&unix.MSG_CTRUNC != 0, len(fds) > limit:
		err = fmt.Errorf("%w: more than %d", ErrDescriptors, limit)
	case flags&unix.MSG_TRUNC != 0:
		err = fmt.Errorf("%w: %d bytes fit", ErrTruncated, len(buf))
	case n == 0 && cred == nil && len(fds) == 0:
		// An empty record looks the same, but comes with credentials.
		err = io.EOF
	}
	if err != nil {
		CloseFiles(fds...)
		return 0, nil, nil, err
	}
	return n, fds, cred, nil
}

// CloseFiles closes descriptors that other processes have handed over. It does
// not wait for a socket among them, whatever SO_LINGER the other process set,
// socket(7). It does wait for a file on a file system that does not answer.
func CloseFiles(fds ...int) {
	for _, fd := range fds {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.Close(fd)
	}
}

var errControl = errors.New("malformed ancillary data")

// ParseControl reads ancillary data, cmsg(3). With an error it still returns
// the descriptors that it found, because they are open. The parsers of package
// unix panic on some lengths; ParseControl checks every length.
func ParseControl(b []byte) (fds []int, cred *unix.Ucred, err error) {
	for len(b) > 0 {
		var h unix.Cmsghdr
		if len(b) < unix.CmsgLen(0) {
			return fds, cred, fmt.Errorf("%w: %d bytes, a header has %d", errControl, len(b), unix.CmsgLen(0))
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unix.SizeofCmsghdr), b)
		length := uint64(h.Len) //nolint:unconvert // it has 32 bits on other machines
		if length < uint64(unix.CmsgLen(0)) || length > uint64(len(b)) {
			return fds, cred, fmt.Errorf("%w: a length of %d in %d bytes", errControl, length, len(b))
		}
		data := b[unix.CmsgLen(0):length]
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
		if h.Level != unix.SOL_SOCKET {
			continue
		}
		switch h.Type {
		case unix.SCM_RIGHTS:
			for ; len(data) >= 4; data = data[4:] {
				fds = append(fds, int(int32(binary.NativeEndian.Uint32(data))))
			}
			if len(data) > 0 {
				return fds, cred, fmt.Errorf("%w: %d bytes after the last descriptor", errControl, len(data))
			}
		case unix.SCM_CREDENTIALS:
			if len(data) != unix.SizeofUcred {
				return fds, cred, fmt.Errorf("%w: credentials of %d bytes", errControl, len(data))
			}
			cred = new(unix.Ucred)
			copy(unsafe.Slice((*byte)(unsafe.Pointer(cred)), unix.SizeofUcred), data)
		}
	}
	return fds, cred, nil
}
