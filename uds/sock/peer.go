package sock

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerCred returns the credentials of the process that made the other end of a
// connection, as reported by the kernel: its effective user and group, and its
// process id as seen from here. The process id is 0 if that process lives in
// another process id namespace. For a client, the peer is the process that
// called listen(2) last. Datagram sockets have no peer credentials: user and
// group are all ones. unix(7), SO_PEERCRED. c is a *[net.UnixConn] or a
// *[Conn].
func PeerCred(c syscall.Conn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctrlErr := raw.Control(func(fd uintptr) { cred, err = peerCred(int(fd)) })
	return cred, errors.Join(ctrlErr, err)
}

func peerCred(fd int) (*unix.Ucred, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return cred, os.NewSyscallError("getsockopt SO_PEERCRED", err)
}

// OverflowUID returns the user id that the kernel reports in place of one that
// has no number in this namespace: user_namespaces(7), "Unmapped user and
// group IDs".
var OverflowUID = sync.OnceValue(func() uint32 {
	text, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	uid, parseErr := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || parseErr != nil {
		return 65534 // the kernel's default
	}
	return uint32(uid)
})

// Unmapped reports whether uid, as reported by the kernel, may stand for a
// user that has no number in this process's user namespace. A user whose
// number there is [OverflowUID] looks the same. In a namespace that maps all
// users, such as the first one of a system, no user is unmapped.
func Unmapped(uid uint32) bool { return uid == OverflowUID() && !mapsAllUsers() }

// IsOwnUser reports whether uid, as reported by the kernel, is certainly the
// user of this process.
func IsOwnUser(uid uint32) bool { return uid == uint32(os.Geteuid()) && !Unmapped(uid) }

var mapsAllUsers = sync.OnceValue(func() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && mapsAll(string(text))
})

// mapsAll reports whether a uid_map maps all users. Each line has the first
// number inside, the first outside, and the count. All users are 2^32-1,
// because -1 is not a user.
func mapsAll(uidMap string) bool {
	mapped := uint64(0)
	for line := range strings.Lines(uidMap) {
		if f := strings.Fields(line); len(f) == 3 {
			n, _ := strconv.ParseUint(f[2], 10, 32)
			mapped += n
		}
	}
	return mapped == 1<<32-1
}

// passCred makes the kernel add the sender's credentials to each message that
// fd receives, unix(7), SO_PASSCRED.
func passCred(fd int) error {
	return os.NewSyscallError("setsockopt SO_PASSCRED", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
}
