// Package uds implements the mechanics of AF_UNIX sockets: addresses,
// listening, dialling, peer credentials, descriptors, takeover. It logs
// nothing and sets no policy. Its errors say what is wrong and what to do.
//
// Listening is easy to get wrong. The contract is:
//
//   - a file at the path that is not a socket is never removed;
//   - a socket that a server still serves is an error, a stale one is replaced;
//   - if two servers start at once, exactly one wins, even in different
//     containers: the lock is an flock(2), not a process id;
//   - the socket file is never more open than requested;
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

// Errors that a caller may want to distinguish with errors.Is. Each comes
// wrapped in an error that names the address.
var (
	// ErrAddress means that the address cannot be valid: a wrong form, no
	// path, a NUL byte, or a path longer than [MaxPath].
	ErrAddress = errors.New("bad address")
	// ErrInUse means that a running server holds the path.
	ErrInUse = errors.New("in use")
	// ErrDescriptors means that a message came with file descriptors that were
	// not requested, or with too many. They are all closed.
	ErrDescriptors = errors.New("message carries file descriptors")
	// ErrTruncated means that a message is larger than the receive buffer. The
	// received bytes are only the start of the message; do not treat them as
	// the whole.
	ErrTruncated = errors.New("message is larger than the receive buffer")
	// ErrNotSocket means that the file at the path is not a socket.
	ErrNotSocket = errors.New("not a socket")
)

// Explain adds to an error of the kernel what it means for this path, and what
// to do. It returns other errors unchanged.
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
			cure = fmt.Sprintf("directory %s does not exist; create it, or mount the volume there", dir)
		} else {
			cure = fmt.Sprintf("nothing is at %s; start the server first, or keep trying", path)
		}
	case unix.ENOTDIR:
		cure = fmt.Sprintf("%s is not a directory; choose another path", dir)
	case unix.EACCES, unix.EPERM:
		cure = whoMay(path)
	case unix.EROFS:
		cure = fmt.Sprintf("directory %s is on a read-only file system or mount; mount it writable", dir)
	case unix.ENOSPC:
		cure = fmt.Sprintf("the file system of %s is full; make room", dir)
	case unix.ECONNREFUSED:
		cure = fmt.Sprintf("no process serves %s, the file is stale; start the server again, it replaces the file", path)
		if path[0] == '@' {
			cure = fmt.Sprintf("no server has the name %s in this network namespace: abstract names do not cross containers", path)
			break
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			cure = fmt.Sprintf("%s is a %s, not a socket; use the path of a server's socket", path, kind(st.Mode))
		}
	case unix.EPROTOTYPE:
		cure = "the server's socket is of another type"
		if t, err := probe(path); err == nil {
			cure = fmt.Sprintf("%s is a %s socket; use %s:%s", path, t, t, path)
		}
	case unix.EAGAIN:
		cure = "the server's backlog is full; keep trying"
	}
	if cure == "" {
		return fmt.Errorf("%w (%s)", errno, unix.ErrnoName(errno))
	}
	return fmt.Errorf("%w (%s): %s", errno, unix.ErrnoName(errno), cure)
}

// whoMay describes the nearest file or directory that denies access to this
// process, with its owner, group and mode.
func whoMay(path string) string {
	me := fmt.Sprintf("this process is uid %d gid %d, groups %v", os.Geteuid(), os.Getegid(), groups())
	for _, p := range []string{path, filepath.Dir(path)} {
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			continue
		}
		return fmt.Sprintf("%s is owned by uid %d gid %d with mode %04o, %s; give it the group, or the mode, that has permission",
			p, st.Uid, st.Gid, st.Mode&0o7777, me)
	}
	return fmt.Sprintf("a directory above %s cannot be searched, %s; give it the group, or the mode, that has permission", path, me)
}

func groups() []int {
	g, err := os.Getgroups()
	if err != nil {
		return nil
	}
	return g
}

// retry repeats a system call as long as a signal interrupts it.
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
