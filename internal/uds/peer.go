package uds

import (
	"os"

	"golang.org/x/sys/unix"
)

// PeerCred is who made the other end's socket, by the kernel's word: the
// effective user and group, and the process id as seen from here, which is 0
// where the peer lives in another process id namespace. unix(7), SO_PEERCRED.
func PeerCred(fd int) (*unix.Ucred, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return cred, os.NewSyscallError("getsockopt SO_PEERCRED", err)
}
