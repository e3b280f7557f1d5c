package uds

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A lock is the lock of a socket path DIR/NAME, the file DIR/.NAME.lock.
//
// An flock(2) belongs to the open file. Every container that mounts the volume
// sees it. The kernel releases it when its holder dies, however it dies. It
// can be handed to another process with the open file. A process id in a file
// would mean nothing in another container, where every server is process 1.
type lock struct {
	file *os.File
	name string // its path
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
		// Other users may be able to write to the directory. They must not
		// make this process create a file elsewhere, or wait for the writer of
		// a named pipe.
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, Explain(name, err))
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
			return l, nil
		}
		_ = l.file.Close()
	}
}

// try takes the lock, or finds that this open file holds it already.
func (l *lock) try() error {
	err := retryErr(func() error { return unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	switch err {
	case nil:
		return nil
	case unix.EWOULDBLOCK:
		return fmt.Errorf("%w: another server holds %s; stop it first or choose another path", ErrInUse, l.name)
	default:
		return fmt.Errorf("lock %s: %w", l.name, Explain(l.name, err))
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
