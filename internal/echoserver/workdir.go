package echoserver

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// A workDir is the working directory of the loop's thread, which is another one
// while it sends to datagram clients with paths.
//
// They are reached through /proc/self/fd. From the root the kernel searches three
// directories on the way there, and asks for the access to each. Where the root
// is a FUSE file system, in containers of rootless engines for example, it asks
// another process: 60 µs for a user that is not root, where the rest takes 4. From
// a working directory /proc/self/fd it is one look-up.
//
// The thread stays there until something else looks up a path: [server.goHome]
// comes before whatever the loop does with files.
type workDir struct {
	home, fds int // O_PATH descriptors; AT_FDCWD where there is only one directory
	away      bool
}

// onOwnThread runs f on a thread that ends with it, so that whatever f does to
// its thread stays there.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end, and is what /proc/PID/cwd shows.
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

// newWorkDir needs no privilege, unshare(2): CLONE_FS. The seccomp(2) profile of
// many engines refuses it in containers: there the directory is that of all
// threads, if that may change. Otherwise, and without /proc, there is none.
func newWorkDir(mayChange bool) workDir {
	one := workDir{home: unix.AT_FDCWD, fds: -1}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	home, err := unix.Open(".", flags, 0)
	if err != nil {
		return one
	}
	fds, err := unix.Open("/proc/self/fd", flags, 0)
	if err == nil {
		if err = unix.Unshare(unix.CLONE_FS); err == nil || mayChange {
			return workDir{home: home, fds: fds}
		}
		_ = unix.Close(fds)
	}
	_ = unix.Close(home)
	return one
}

// prefix is what comes before a descriptor's number in a path that leads to it.
func (w *workDir) prefix() string {
	if w.fds < 0 {
		return "/proc/self/fd/"
	}
	return ""
}

// leave makes the number of a descriptor a path, see prefix.
func (w *workDir) leave() error {
	if w.fds < 0 || w.away {
		return nil
	}
	err := unix.Fchdir(w.fds)
	w.away = err == nil
	return err
}

// goHome comes before everything that looks up a path.
func (w *workDir) goHome() {
	if w.away {
		w.away = unix.Fchdir(w.home) != nil
	}
}

func (w *workDir) close() {
	if w.fds >= 0 {
		_ = unix.Close(w.fds)
		_ = unix.Close(w.home)
	}
}
