package uds

import (
	"errors"
	"net"
	"sync/atomic"
)

// A PacketConn receives datagrams, and answers them if the sender has a name.
// It is a *[net.UnixConn] whose Close also removes the socket file.
type PacketConn struct {
	*net.UnixConn
	files  func() error
	closed atomic.Bool
}

// Close closes the socket and removes its file. Closing again returns
// [net.ErrClosed].
func (p *PacketConn) Close() error {
	if p.closed.CompareAndSwap(false, true) {
		if err := p.files(); err != nil { // first: the file is known only as long as the socket is open
			return errors.Join(err, p.UnixConn.Close())
		}
	}
	return p.UnixConn.Close()
}

// ReadFromCred is ReadFrom with the credentials of the sender, as the kernel
// reports them for each datagram, unix(7), SCM_CREDENTIALS. The error is
// [ErrTruncated] if the datagram is larger than b. Descriptors that come along
// are closed. Linux only.
func (p *PacketConn) ReadFromCred(b []byte) (n int, from net.Addr, cred Cred, err error) {
	return p.readFromCred(b)
}
