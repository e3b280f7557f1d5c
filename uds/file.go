package uds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// DefaultMode leaves the socket file's mode to the umask: 0777 without the
// umask's bits, 0755 on most systems.
const DefaultMode fs.FileMode = 0

// A file is a socket file that this process made. It is identified by device
// and inode, because another process can reuse its name.
type file struct {
	path     string
	dev, ino uint64
	mode     fs.FileMode // as this process set it
}

func newFile(path string, st *unix.Stat_t) *file {
	return &file{path, st.Dev, st.Ino, fs.FileMode(st.Mode).Perm()}
}

// bindFile binds fd to path and sets the file's mode. [DefaultMode] leaves the
// mode to the umask.
//
// The file gets the mode of the socket's inode without the umask's bits. So
// fchmod(2) before bind(2) makes a file that is never more open than
// requested. That matters for datagrams, which arrive from bind on. Afterwards
// the bits that the umask removed are set through a descriptor: chmod(2) on
// the path would follow a symbolic link that another process may have put
// there meanwhile.
func bindFile(fd int, path string, mode fs.FileMode) (*file, error) {
	if mode != DefaultMode {
		if err := unix.Fchmod(fd, uint32(mode.Perm())); err != nil {
			return nil, os.NewSyscallError("fchmod", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		if err == unix.EADDRINUSE {
			return nil, fmt.Errorf("%w: something is at %s already, and is left alone; choose another path", ErrInUse, path)
		}
		return nil, Explain(path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, Explain(path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s was replaced while it was made; do not let other users write to its directory", path)
	}
	f := newFile(path, &st)
	if mode != DefaultMode && f.mode != mode.Perm() {
		if err := f.chmod(mode); err != nil {
			f.remove()
			return nil, err
		}
	}
	return f, nil
}

func (f *file) chmod(mode fs.FileMode) error {
	fd, err := retry(func() (int, error) {
		return unix.Open(f.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("set mode %04o: %w", mode.Perm(), Explain(f.path, err))
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if !f.is(&st) {
		return fmt.Errorf("set mode %04o: %s was replaced meanwhile; do not let other users write to its directory", mode.Perm(), f.path)
	}
	// fchmod(2) rejects an O_PATH descriptor; chmod(2) on its path in /proc
	// works.
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), uint32(mode.Perm())); err != nil {
		return fmt.Errorf("set mode %04o on %s: %w", mode.Perm(), f.path, err)
	}
	f.mode = mode.Perm()
	return nil
}

// remove unlinks the file if the path still leads to it. Device and inode
// identify the file only while the socket is open, which keeps the inode from
// being reused. So call remove before close.
func (f *file) remove() {
	if f != nil && f.ours() {
		_ = unix.Unlink(f.path)
	}
}

func (f *file) ours() bool {
	var st unix.Stat_t
	return unix.Lstat(f.path, &st) == nil && f.is(&st)
}

func (f *file) is(st *unix.Stat_t) bool { return st.Dev == f.dev && st.Ino == f.ino }

// removeStale makes room at path for a new socket. It removes a socket that no
// process serves, and nothing else. The caller holds the lock of path.
func removeStale(path string) error {
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return Explain(path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%w: %s is a %s; it is left alone; remove it yourself or choose another path",
			ErrNotSocket, path, kind(st.Mode))
	}
	// connect(2) to a regular file fails just like one to a stale socket, so
	// lstat comes first.
	switch t, err := probe(path); err {
	case unix.ECONNREFUSED:
	case unix.ENOENT:
		return nil
	case errBound:
		return fmt.Errorf("%w: %s: %w; wait, or choose another path", ErrInUse, path, err)
	case nil:
		return fmt.Errorf("%w: a server answers on %s (%s); stop it first or choose another path", ErrInUse, path, t)
	default:
		return fmt.Errorf("cannot tell whether %s is served, so it is left alone: %w", path, Explain(path, err))
	}
	if !newFile(path, &st).ours() {
		return fmt.Errorf("%w: %s changed meanwhile; another process made it, and it is left alone", ErrInUse, path)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove the stale socket %s: %w", path, Explain(path, err))
	}
	return nil
}

// errBound means that a process has bound the socket but does not listen on
// it, or does not listen yet.
var errBound = errors.New("a process has bound it, and does not listen yet")

// probe returns the type of the socket served at path. It tries to connect
// with each type; a wrong type fails with EPROTOTYPE, unix(7). It returns
// ECONNREFUSED if no process has the socket open any more: then every type is
// refused. If the socket is bound but no process listens, only its own type is
// refused.
func probe(path string) (Type, error) {
	var refused, wrong []Type
	for _, t := range types {
		switch err := connects(t, path); err {
		case nil, unix.EAGAIN: // EAGAIN: a server has it, with a full backlog
			return t, nil
		case unix.EPROTOTYPE:
			wrong = append(wrong, t)
		case unix.ECONNREFUSED:
			refused = append(refused, t)
		default:
			return t, err
		}
	}
	switch {
	case len(refused) == 0:
		return "", unix.EPROTOTYPE
	case len(wrong) > 0:
		return refused[0], errBound
	default:
		return "", unix.ECONNREFUSED
	}
}

func connects(t Type, path string) error {
	fd, err := socket(t)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return retryErr(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
}

func socket(t Type) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, t.sotype()|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EMFILE) {
		return -1, fmt.Errorf("%w (EMFILE); raise the limit of open files", err)
	}
	return fd, os.NewSyscallError("socket", err)
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "named pipe"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	default:
		return "socket"
	}
}
