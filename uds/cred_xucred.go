//go:build darwin || freebsd

package uds

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func peerCred(c net.Conn) (cred Cred, err error) {
	raw, err := rawConn("peer credentials", c)
	if err != nil {
		return Cred{}, err
	}
	ctrlErr := raw.Control(func(fd uintptr) {
		var x *unix.Xucred
		if x, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); err == nil {
			cred = Cred{UID: int(x.Uid), GID: int(x.Groups[0]), PID: peerPID(int(fd))}
		}
	})
	return cred, errors.Join(ctrlErr, os.NewSyscallError("getsockopt LOCAL_PEERCRED", err))
}
