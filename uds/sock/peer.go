//go:build linux

package sock

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// PeerCred returns the credentials of the process that made the other end of a
// connection, as reported by the kernel: its effective user and group, and its
// process id as seen from here. The process id is 0 if that process lives in
// another process id namespace. For a client, the peer is the process that
// called listen(2) last. Datagram sockets have no peer credentials: user and
// group are all ones. unix(7), SO_PEERCRED.
func PeerCred(fd int) (*unix.Ucred, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return cred, os.NewSyscallError("getsockopt SO_PEERCRED", err)
}

// PeerCred is [PeerCred] of the connection.
func (c *Conn) PeerCred() (cred *unix.Ucred, err error) {
	err = c.control(func(fd int) (err error) {
		cred, err = PeerCred(fd)
		return err
	})
	return cred, err
}

// PeerGroups returns the supplementary groups of the process that made the other
// end of a connection. unix(7), SO_PEERGROUPS.
func PeerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	n, err := raw.PeerGroups(fd, groups)
	if err == unix.ERANGE {
		groups = make([]uint32, n)
		n, err = raw.PeerGroups(fd, groups)
	}
	if err != nil {
		return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", err)
	}
	return groups[:n], nil
}

// PeerName returns the address of the other end of a connection, see
// [Sender.String].
func PeerName(fd int) string {
	var sa unix.RawSockaddrAny
	size, err := raw.PeerName(fd, &sa)
	if err != nil {
		return ""
	}
	return Sender(unsafe.Slice((*byte)(unsafe.Pointer(&sa)), size)).String()
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

var mapsAllUsers = sync.OnceValue(why.MapsAllUsers)
