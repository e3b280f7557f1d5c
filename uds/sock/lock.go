//go:build linux

package sock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// A lock is the lock of a socket path DIR/NAME, the file DIR/.NAME.lock.
//
// An flock(2) belongs to the open file. Every container that mounts the volume
// sees it. The kernel releases it when its holder dies, however it dies. It
// can be handed to another process with the open file. A process id in a file
// would mean nothing in another container, where every server is process 1.
type lock struct {
	file *os.File
	name string // its path, absolute as that of a [file]
}

// beside returns the path of a file that belongs to the socket at path. The
// file is in the same directory, and hidden, so that ls shows only the
// sockets.
func beside(path, suffix string) string {
	dir, name := filepath.Split(path)
	return dir + "." + name + suffix
}

func lockPath(path string) (*lock, error) {
	name := beside(path, ".lock")
	for {
		f, err := openLock(name)
		if errors.Is(err, unix.EACCES) {
			if err = removeLock(path, name, err); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		l := &lock{f, name}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			_ = l.file.Close()
			return nil, fmt.Errorf("%w: %s is not a regular file, and is left alone; remove it yourself or choose another path", ErrInUse, name)
		}
		if err := l.try(); err != nil {
			_ = l.file.Close()
			return nil, err
		}
		// unlock removes the file, so the file just locked may be one that its
		// last holder has removed. Then a third server would lock a new file,
		// and both servers would believe that they hold the lock.
		if l.isAt(name) {
			l.name = absolute(name)
			return l, nil
		}
		_ = l.file.Close()
	}
}

// openLock opens the lock file, and makes it if it is missing. Other users may
// be able to write to the directory. They must not make this process create a
// file elsewhere, or wait for the writer of a named pipe.
//
// It opens a file that is there without O_CREAT: with it, protected_regular of
// proc_sys_fs(5) denies other users' files even to root.
func openLock(name string) (*os.File, error) {
	const flags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	for {
		f, err := os.OpenFile(name, flags, 0)
		if errors.Is(err, unix.ENOENT) {
			f, err = os.OpenFile(name, flags|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, unix.EEXIST) {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, explainFile(name, err))
		}
		return f, nil
	}
}

// removeLock removes a lock file that this process may not open: another user
// made it, and may have been killed. Whether its holder runs cannot be found
// out, so the socket decides: it must be missing or stale. A server that is
// between its lock and its socket finds out, see [ListenConfig.listen].
func removeLock(path, name string, denied error) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return denied // a directory cannot be searched
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return denied
	}
	whose := fmt.Sprintf("another user's server made %s; while no server runs at %s, remove it: its %s", name, path, why.WhoMay(&st))
	if _, err := stale(path); err != nil {
		return fmt.Errorf("%w (%s)", err, whose)
	}
	if err := unix.Unlink(name); err != nil && err != unix.ENOENT {
		return fmt.Errorf("lock %s: %w (%s): %s", name, unix.EACCES, unix.ErrnoName(unix.EACCES), whose)
	}
	return nil
}

// try takes the lock, or finds that this open file holds it already.
func (l *lock) try() error {
	err := raw.Again(func() error { return unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	switch err {
	case nil:
		return nil
	case unix.EWOULDBLOCK:
		return fmt.Errorf("%w: another server holds %s; stop it first or choose another path", ErrInUse, l.name)
	default:
		return fmt.Errorf("lock %s: %w", l.name, explainFile(l.name, err))
	}
}

func (l *lock) isAt(name string) bool {
	held, err := l.file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(name)
	return err == nil && os.SameFile(held, now)
}

// unlock removes the lock file, then releases the lock. In this order no
// process can hold a lock on a file that is about to be removed, except for
// the moment that lockPath checks for. If another process has removed the file
// already, the path's lock may belong to a successor by now.
func (l *lock) unlock() {
	if l != nil {
		if l.isAt(l.name) {
			_ = os.Remove(l.name)
		}
		// Closing would be enough, if a child that is being started did not
		// have a copy.
		_ = unix.Flock(int(l.file.Fd()), unix.LOCK_UN)
		_ = l.file.Close()
	}
}

// release closes this process's descriptor and nothing else. The open file,
// and with it the lock, belongs to another process too.
func (l *lock) release() {
	if l != nil {
		_ = l.file.Close()
	}
}
