//go:build unix && (!linux || uds_portable)

package uds

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
)

const errRefused = syscall.ECONNREFUSED

func isSocket(mode fs.FileMode) bool { return mode&fs.ModeSocket != 0 }

func pair() (*net.UnixConn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	first, second := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	c, err := net.FileConn(first) // FileConn duplicates it
	if err := errors.Join(err, first.Close()); err != nil {
		return nil, nil, errors.Join(err, second.Close())
	}
	return c.(*net.UnixConn), second, nil
}

// messages are the methods of *net.UnixConn for ancillary data.
type messages interface {
	WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
}

func messagesOf(c net.Conn) (messages, error) {
	m, ok := netConn(c).(messages)
	if !ok {
		return nil, fmt.Errorf("%T is not a Unix socket's connection: %w", c, errors.ErrUnsupported)
	}
	return m, nil
}

func sendFiles(c net.Conn, b []byte, files []*os.File) error {
	m, err := messagesOf(c)
	if err != nil {
		return err
	}
	n := 0
	err = withDescriptors(files, nil, func(fds []int) (err error) {
		n, _, err = m.WriteMsgUnix(b, syscall.UnixRights(fds...), nil)
		return err
	})
	if err == nil && n < len(b) { // a stream had room for a part
		_, err = netConn(c).Write(b[n:])
	}
	return err
}

func receiveFiles(c net.Conn, buf []byte, limit int) (n int, files []*os.File, err error) {
	m, err := messagesOf(c)
	if err != nil {
		return 0, nil, err
	}
	var control []byte
	if limit > 0 {
		control = make([]byte, syscall.CmsgSpace(4*limit))
	}
	n, used, flags, _, err := m.ReadMsgUnix(buf, control)
	var fds []int
	if received, parseErr := syscall.ParseSocketControlMessage(control[:max(used, 0)]); parseErr == nil {
		for i := range received {
			rights, _ := syscall.ParseUnixRights(&received[i])
			fds = append(fds, rights...)
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF
		if len(fds) > 0 { // an empty message
			err = nil
		}
	}
	switch {
	case err != nil:
	case flags&syscall.MSG_CTRUNC != 0 && len(fds) < limit:
		err = fmt.Errorf("%w: the limit is reached; close some, or raise it", ErrOpenFiles)
	case flags&syscall.MSG_CTRUNC != 0, len(fds) > limit: // there may be room for one more, by alignment
		err = fmt.Errorf("%w: more than %d", ErrDescriptors, limit)
	case flags&syscall.MSG_TRUNC != 0:
		err = fmt.Errorf("%w: %d bytes fit", ErrTruncated, len(buf))
	}
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "received")
		if err != nil {
			_ = f.Close()
			continue
		}
		files = append(files, f)
	}
	if err != nil {
		n = 0
	}
	return n, files, err
}
