package uds

import (
	"fmt"
	"os"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// lockPath takes the lock of a socket path, the file PATH.lock beside it.
//
// An flock(2) belongs to the open file: it is seen by every container that
// mounts the volume, and the kernel frees it when its holder dies, however it
// dies. A process id in a file would mean nothing in another container, where
// every server is process 1.
func lockPath(path string) (*flock.Flock, error) {
	name := path + ".lock"
	for {
		// O_NOFOLLOW: others may be able to write to the directory, and must
		// not lead us to create a file elsewhere.
		l := flock.New(name, flock.SetFlag(os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW), flock.SetPermissions(0o600))
		ok, err := l.TryLock()
		switch {
		case err != nil:
			return nil, fmt.Errorf("lock %s: %w", name, explain(name, err))
		case !ok:
			return nil, fmt.Errorf("%w: another server holds %s: stop it first or choose another path", ErrInUse, name)
		}
		// unlockPath removes the file, so that the one just locked may be one
		// that its last holder has removed: then a third server would lock a
		// new file, and both would believe that they had won.
		held, err := l.Stat()
		if err == nil {
			if now, err := os.Lstat(name); err == nil && os.SameFile(held, now) {
				return l, nil
			}
		}
		if err := l.Unlock(); err != nil {
			return nil, fmt.Errorf("unlock %s: %w", name, err)
		}
	}
}

// unlockPath removes the lock file, then lets it go: in this order nobody can
// hold a lock on a file that is about to be removed, but for the moment that
// lockPath looks for.
func unlockPath(l *flock.Flock) {
	if l != nil {
		_ = os.Remove(l.Path())
		_ = l.Unlock()
	}
}
