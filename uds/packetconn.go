package uds

import (
	"errors"
	"net"
	"sync"
)

// A PacketConn receives datagrams, and answers them if the sender has a name.
// It is a *[net.UnixConn] whose Close also removes the socket file.
type PacketConn struct {
	*net.UnixConn
	files func() error
	close sync.Once
}

// Close closes the socket and removes its file. Closing again waits for the first
// Close, so that the file is gone then too, and returns [net.ErrClosed].
func (p *PacketConn) Close() (err error) {
	p.close.Do(func() { err = p.files() }) // first: the file is known only as long as the socket is open
	if err != nil {
		return errors.Join(err, p.UnixConn.Close())
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
