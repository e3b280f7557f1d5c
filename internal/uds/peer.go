package uds

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// PeerCred is who made the other end of a connection, by the kernel's word: the
// effective user and group, and the process id as seen from here, which is 0
// where the peer lives in another process id namespace. For a client it is who
// called listen(2) last. Datagram sockets have none: user and group are all ones.
// unix(7), SO_PEERCRED.
func PeerCred(fd int) (*unix.Ucred, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return cred, os.NewSyscallError("getsockopt SO_PEERCRED", err)
}

// PeerCred is who serves the connection.
func (c *Conn) PeerCred() (cred *unix.Ucred, err error) {
	raw, err := c.raw()
	if err != nil {
		return nil, err
	}
	ctrlErr := raw.Control(func(fd uintptr) { cred, err = PeerCred(int(fd)) })
	return cred, errors.Join(ctrlErr, err)
}

// PeerName is the address of the other end of a connection to read: a path, an
// @name, HOST:PORT, or "" where it has none.
func PeerName(fd int) string {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return ""
	}
	return nameOf(sa)
}

func nameOf(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		if sa.Name != "@" { // how package unix shows a socket without a name
			return sa.Name
		}
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return ""
}
