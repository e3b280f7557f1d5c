package uds

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

func credOf(u *unix.Ucred) Cred { return Cred{int(int32(u.Uid)), int(int32(u.Gid)), int(u.Pid)} }

func peerCred(c net.Conn) (cred Cred, err error) {
	raw, err := rawConn("peer credentials", c)
	if err != nil {
		return Cred{}, err
	}
	ctrlErr := raw.Control(func(fd uintptr) {
		var u *unix.Ucred
		if u, err = sock.PeerCred(int(fd)); err == nil {
			cred = credOf(u)
		}
	})
	return cred, errors.Join(ctrlErr, err)
}
