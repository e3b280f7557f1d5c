package server

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// atHome calls f, which looks up paths, in the directory where the process was
// started. The loop looks up paths in no other way.
func (s *Server) atHome(f func()) {
	s.names.dir.goHome()
	f()
}

// A workDir is the working directory of the loop's thread, which changes while
// the server sends to datagram clients with paths.
//
// The server reaches them through /proc/self/fd. From the root directory, the
// kernel searches three directories on the way there, and checks access to
// each. If the root is a FUSE file system, as in containers of rootless
// engines, the kernel asks another process: this takes 60 µs for a user other
// than root, while the rest takes 4 µs. From the working directory
// /proc/self/fd, one look-up is enough.
//
// The thread stays there until something else looks up a path on the loop: see
// [Server.atHome].
type workDir struct {
	home, fds int // O_PATH descriptors; AT_FDCWD if there is only one directory
	away      bool
}

// newWorkDir needs no privilege, unshare(2): CLONE_FS. In containers, the
// seccomp(2) profile of many engines refuses the call. Then the directory is
// that of all threads, if mayChange allows that. If not, or without /proc,
// there is none.
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

// prefix returns the part of a path that comes before the number of a
// descriptor.
func (w *workDir) prefix() string {
	if w.fds < 0 {
		return "/proc/self/fd/"
	}
	return ""
}

// leave changes the directory so that the number of a descriptor is a path,
// see prefix.
func (w *workDir) leave() error {
	if w.fds < 0 || w.away {
		return nil
	}
	err := unix.Fchdir(w.fds)
	w.away = err == nil
	return err
}

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

// onOwnThread runs f on a thread that ends with f, so that f's changes to its
// thread stay there.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end, and /proc/PID/cwd shows its
			// directory.
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}
