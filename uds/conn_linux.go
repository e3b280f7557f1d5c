//go:build linux && !uds_portable

package uds

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

var notThereYet = sock.NotThereYet

func addr(network, path string) sock.Addr {
	t := map[string]sock.Type{"unix": sock.Stream, "unixgram": sock.Datagram, "unixpacket": sock.Seqpacket}[network]
	return sock.Addr{Type: t, Path: path}
}

// A descriptor is the socket in a Control function.
type descriptor int

func (d descriptor) Control(f func(fd uintptr)) error { f(uintptr(d)); return nil }
func (descriptor) Read(func(fd uintptr) bool) error   { return errors.ErrUnsupported }
func (descriptor) Write(func(fd uintptr) bool) error  { return errors.ErrUnsupported }

func (d Dialer) dial(ctx context.Context, network, path string) (net.Conn, error) {
	f := sock.DialConfig{Bind: d.Name}
	if d.Control != nil {
		f.Control = func(fd int) error { return d.Control(network, path, descriptor(fd)) }
	}
	c, err := f.Dial(ctx, addr(network, path))
	if err != nil {
		return nil, err
	}
	inner := c.Conn.(*net.UnixConn)
	if d.Name == "" {
		return inner, nil
	}
	return &Conn{inner, c.Close}, nil
}

func pair() (*net.UnixConn, *os.File, error) {
	own, other, err := sock.Pair()
	if err != nil {
		return nil, nil, err
	}
	return own.Conn.(*net.UnixConn), other, nil
}

func sendFiles(c net.Conn, b []byte, files []*os.File) error {
	raw, err := rawConn("send files", c)
	if err != nil {
		return err
	}
	if len(b) == 0 && len(files) > 0 {
		b = []byte{0} // as package net does: otherwise a stream carries none
	}
	n := 0
	err = withDescriptors(files, nil, func(fds []int) (err error) {
		waitErr := raw.Write(func(fd uintptr) bool {
			n, err = sock.SendFiles(int(fd), b, fds, "")
			return err != unix.EAGAIN
		})
		return errors.Join(waitErr, err)
	})
	if err == nil && n < len(b) { // a stream had room for a part
		_, err = netConn(c).Write(b[n:])
	}
	return fileError("write", c, err)
}

func receiveFiles(c net.Conn, buf []byte, limit int) (n int, files []*os.File, err error) {
	raw, err := rawConn("receive files", c)
	if err != nil {
		return 0, nil, err
	}
	var fds []int
	datagram := false
	waitErr := raw.Read(func(fd uintptr) bool {
		n, fds, _, err = sock.ReceiveFiles(int(fd), buf, limit)
		if err == io.EOF {
			t, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
			datagram = t == unix.SOCK_DGRAM
		}
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return 0, nil, waitErr
	}
	if err == io.EOF {
		if datagram { // an empty one
			err = nil
		}
		return 0, nil, err
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return n, files, fileError("read", c, err)
}

// fileError returns an error of a connection as package net does.
func fileError(op string, c net.Conn, err error) error {
	var errno syscall.Errno
	if err == nil || errors.As(err, new(*net.OpError)) || !errors.As(err, &errno) && !errors.Is(err, ErrDescriptors) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrOpenFiles) {
		return err
	}
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: cause{err}}
}

func (p *PacketConn) readFromCred(b []byte) (n int, from net.Addr, cred Cred, err error) {
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)) // no room for descriptors
	n, used, flags, sender, err := p.ReadMsgUnix(b, control)
	if err != nil {
		return 0, nil, Cred{}, err
	}
	if sender != nil {
		from = sender
	}
	fds, ucred, err := sock.ParseControl(control[:used])
	sock.CloseFiles(fds...)
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = ErrTruncated
	}
	if ucred != nil {
		cred = credOf(ucred)
	}
	return n, from, cred, opError("read", "unixgram", p.LocalAddr().String(), err)
}
