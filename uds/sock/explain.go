//go:build linux

package sock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/why"
)

// Explain adds to an error of connect(2) what it means for this path, and what
// to do. It returns other errors unchanged.
func Explain(path string, err error) error { return explain(path, err, why.Denied) }

// explainFile is Explain for a file that is to be made at path, or removed.
func explainFile(path string, err error) error { return explain(path, err, why.DeniedFile) }

func explain(path string, err error, denied func(path string) string) error {
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
		if cure = denied(path); cure == "" {
			cure = notKnown(path)
		}
	case unix.EROFS:
		cure = fmt.Sprintf("directory %s is on a read-only file system or mount; mount it writable", dir)
	case unix.ENOSPC:
		cure = fmt.Sprintf("the file system of %s is full; make room", dir)
	case unix.EBUSY:
		if cure = why.Refused(path); cure == "" {
			cure = fmt.Sprintf("%s is in use as a mount point; choose another path", path)
		}
	case unix.ECONNREFUSED:
		cure = refused(path)
	case unix.EPROTOTYPE:
		cure = "the server's socket is of another type"
		if t, err := Probe(path, nil); err == nil || err == unix.EAGAIN {
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

// refused explains ECONNREFUSED.
func refused(path string) string {
	if IsAbstract(path) {
		return refusedAbstract(path)
	}
	if text := why.Refused(path); text != "" {
		return text
	}
	switch _, err := Probe(path, nil); err {
	case ErrBound:
		return fmt.Sprintf("%s: %v; keep trying, or use the path of a server's socket", path, err)
	case unix.ECONNREFUSED:
		if text := KilledTap(path); text != "" {
			return text
		}
		return fmt.Sprintf("no process serves %s, the file is stale; start the server again, it replaces the file", path)
	default:
		return fmt.Sprintf("%s was not served a moment ago; try again", path)
	}
}

// refusedAbstract does the same for an abstract name. Sockets of each type have
// names of their own, so a wrong type is refused, too.
func refusedAbstract(path string) string {
	all, _ := why.Sockets()
	for _, s := range all {
		t := TypeOf(int(s.SoType))
		switch {
		case t == "" || !s.IsAbstract(path):
		case s.Serves():
			return fmt.Sprintf("%s is the name of a %s socket; use %s:%s", path, t, t, path)
		case s.State != why.Established:
			return fmt.Sprintf("%s: %v; keep trying, or use the name of a server's socket", path, ErrBound)
		}
	}
	return fmt.Sprintf("no server has the name %s in this network namespace: abstract names do not cross containers", path)
}

// notKnown describes the file or the directory at which permission may end, if
// neither mode nor access control list denies it.
func notKnown(path string) string {
	for _, p := range []string{path, filepath.Dir(path)} {
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			return fmt.Sprintf("what denies it is not known (a sticky directory, a datagram socket that belongs to another peer, a security module?); of %s the %s", p, why.WhoMay(&st))
		}
	}
	return "what denies it is not known"
}
