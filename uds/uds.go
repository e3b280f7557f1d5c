// Package uds is the mechanics of AF_UNIX sockets: addresses, listening,
// dialling, peer credentials, descriptors, takeover. It logs nothing and decides
// nothing; it returns errors that say what is wrong and what to do.
//
// The contract of listening, which is the part that is easy to get wrong:
//
//   - what is at the path and is not a socket is never removed;
//   - a socket that somebody serves is refused, a stale one is replaced;
//   - of two servers starting at once exactly one wins, also when they run in
//     different containers: the lock is an flock(2), not a process id;
//   - the socket file is at no moment more open than it was asked to be;
//   - closing removes only the file that this socket made.
//
// The numbers follow unix(7), socket(7) and listen(2) on Linux.
package uds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Errors that a caller may want to tell apart with errors.Is. Each comes
// wrapped in one that names the address.
var (
	// ErrAddress is an address that cannot be meant: no form, no path, a NUL
	// byte, a path longer than [MaxPath].
	ErrAddress = errors.New("bad address")
	// ErrInUse is a path that a running server holds.
	ErrInUse = errors.New("in use")
	// ErrDescriptors is a message that came with file descriptors that nobody
	// asked for, or with too many. None of them is open.
	ErrDescriptors = errors.New("message carries file descriptors")
	// ErrTruncated is a message larger than the receive buffer. What was received
	// is a prefix of it and must not be taken for the message.
	ErrTruncated = errors.New("message is larger than the receive buffer")
	// ErrNotSocket is a path at which there is something that is no socket.
	ErrNotSocket = errors.New("not a socket")
)

// Explain adds to a refusal by the kernel what it means for this path, and what
// to do. Other errors it leaves alone.
func Explain(path string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	dir := filepath.Dir(path)
	cure := ""
	switch errno {
	case unix.ENOENT:
		if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
			cure = fmt.Sprintf("directory %s does not exist: create it, or mount the volume there", dir)
		} else {
			cure = fmt.Sprintf("nothing is at %s: start the server first, or keep trying", path)
		}
	case unix.ENOTDIR:
		cure = fmt.Sprintf("%s is not a directory: choose another path", dir)
	case unix.EACCES, unix.EPERM:
		cure = whoMay(path)
	case unix.EROFS:
		cure = fmt.Sprintf("directory %s is on a read-only file system or mount: mount it writable", dir)
	case unix.ENOSPC:
		cure = fmt.Sprintf("the file system of %s is full: make room", dir)
	case unix.ECONNREFUSED:
		cure = fmt.Sprintf("nobody serves %s, the file is stale: start the server again, it replaces the file", path)
		if path[0] == '@' {
			cure = fmt.Sprintf("no server has the name %s in this network namespace: abstract names do not cross containers", path)
			break
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			cure = fmt.Sprintf("%s is a %s, no socket: use the path of a server's socket", path, kind(st.Mode))
		}
	case unix.EPROTOTYPE:
		cure = "the server's socket is of another type"
		if t, err := probe(path); err == nil {
			cure = fmt.Sprintf("%s is a %s socket: use %s:%s", path, t, t, path)
		}
	case unix.EAGAIN:
		cure = "the server's backlog is full: keep trying"
	}
	if cure == "" {
		return fmt.Errorf("%w (%s)", errno, unix.ErrnoName(errno))
	}
	return fmt.Errorf("%w (%s): %s", errno, unix.ErrnoName(errno), cure)
}

// whoMay names, with its numbers, the nearest thing that keeps this process out.
func whoMay(path string) string {
	me := fmt.Sprintf("this process is %d:%d, groups %v", os.Geteuid(), os.Getegid(), groups())
	for _, p := range []string{path, filepath.Dir(path)} {
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			continue
		}
		return fmt.Sprintf("%s is owned by %d:%d with mode %04o, %s: give it the group, or the mode, that lets it in",
			p, st.Uid, st.Gid, st.Mode&0o7777, me)
	}
	return fmt.Sprintf("a directory above %s cannot be searched, %s: give it the group, or the mode, that lets it in", path, me)
}

func groups() []int {
	g, err := os.Getgroups()
	if err != nil {
		return nil
	}
	return g
}

// retry calls a system call again as long as a signal interrupts it.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

func retryErr(call func() error) error {
	_, err := retry(func() (struct{}, error) { return struct{}{}, call() })
	return err
}
