//go:build linux

package sock

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// DefaultMode leaves the socket file's mode to the umask: 0777 without the
// umask's bits, 0755 on most systems.
const DefaultMode fs.FileMode = 0

// A file is a socket file that this process made. It is identified by device
// and inode, because another process can reuse its name.
type file struct {
	path     string // absolute, because a process may change its directory
	dev, ino uint64
	mode     fs.FileMode // as this process set it
}

func newFile(path string, st *unix.Stat_t) *file {
	return &file{absolute(path), st.Dev, st.Ino, fs.FileMode(st.Mode).Perm()}
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// bindFile binds fd to path, so that the file has the mode from the moment it
// is there, and then calls listen, if it is not nil: a client that waits for
// the name connects at once. [DefaultMode] leaves the mode to the umask.
//
// bind(2) gives the file the mode of the socket's inode, less the umask. So
// the inode gets the mode first, which makes a file that is never more open
// than requested, and bind runs without a umask, see [withoutUmask]. If
// neither has made the mode right, it is set afterwards, through a descriptor:
// chmod(2) on the path would follow a symbolic link that another process may
// have put there meanwhile.
func bindFile(fd int, path string, mode fs.FileMode, listen func() error) (f *file, err error) {
	var listenErr error
	bind := func() {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		if err == nil && listen != nil {
			listenErr = listen()
		}
	}
	if mode == DefaultMode {
		bind()
	} else {
		if err := unix.Fchmod(fd, uint32(mode.Perm())); err != nil {
			return nil, os.NewSyscallError("fchmod", err)
		}
		withoutUmask(mode, bind)
	}
	switch err {
	case nil:
	case unix.EADDRINUSE:
		return nil, fmt.Errorf("%w: something is at %s already, and is left alone; choose another path", ErrInUse, path)
	default:
		return nil, explainFile(path, err)
	}
	if f, err = boundFile(fd, path); err != nil {
		return nil, err
	}
	if listenErr != nil {
		f.remove()
		return nil, listenErr
	}
	if mode != DefaultMode && f.mode != mode.Perm() {
		if err := f.chmod(mode); err != nil {
			f.remove()
			return nil, err
		}
	}
	return f, nil
}

// boundFile returns the file at path, to which fd has just been bound. A file
// of this process's own user is taken for it. The owner alone proves nothing
// else: some file systems show another one (NFS with root_squash, 9p, bindfs).
// So the kernel is asked to which file the socket is bound.
func boundFile(fd int, path string) (*file, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, explainFile(path, err)
	}
	own, err := st.Mode&unix.S_IFMT == unix.S_IFSOCK, error(nil)
	if own && int(st.Uid) != os.Geteuid() {
		own, err = why.IsBoundTo(fd, &st)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot tell whether %s is the file that was just made, because its file system shows user %d as the owner, not user %d, and the kernel does not report the socket's file (sock_diag: %w); use another file system",
			path, st.Uid, os.Geteuid(), err)
	case !own:
		return nil, fmt.Errorf("%s was replaced while it was made; do not let other users write to its directory", path)
	}
	return newFile(path, &st), nil
}

// withoutUmask runs f where the umask removes nothing from mode: if need be on
// a thread that has a umask of its own, unshare(2), CLONE_FS, and that ends
// with f. The seccomp(2) profile of many engines denies that in containers;
// then f runs with the umask of the process.
func withoutUmask(mode fs.FileMode, f func()) {
	if mode.Perm()&umask() == 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end, and /proc/PID shows its umask.
			defer runtime.UnlockOSThread()
			withoutUmask(mode, f)
			return
		}
		if unix.Unshare(unix.CLONE_FS) == nil {
			unix.Umask(0)
		}
		f()
	}()
	<-done
}

// umask returns the umask, proc_pid_status(5). umask(2) cannot read it without
// setting it. It returns all bits if /proc does not tell.
func umask() (mask fs.FileMode) {
	text, err := os.ReadFile("/proc/thread-self/status")
	if _, after, ok := strings.Cut(string(text), "\nUmask:\t"); err == nil && ok {
		if _, err := fmt.Sscanf(after, "%o", &mask); err == nil {
			return mask
		}
	}
	return fs.ModePerm
}

func (f *file) chmod(mode fs.FileMode) error {
	fd, err := raw.Retry(func() (int, error) {
		return unix.Open(cmp.Or(f.at(), f.path), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("set mode %04o: %w", mode.Perm(), explainFile(f.path, err))
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
// being reused. So call remove before close. A tapped file goes back first: then
// nothing is at the path, as without the tap.
func (f *file) remove() {
	if f == nil {
		return
	}
	if at := f.at(); at != "" && at != f.path {
		_ = unix.Rename(at, f.path)
	}
	if f.at() == f.path {
		_ = unix.Unlink(f.path)
	}
}

func (f *file) ours() bool { return f.at() != "" }

// at returns where the file is: at its path, or where a tap has put it; "" if it
// is gone.
func (f *file) at() string {
	var st unix.Stat_t
	switch {
	case unix.Lstat(f.path, &st) != nil:
	case f.is(&st):
		return f.path
	default:
		if aside := tapped(f.path, &st); f.is(&st) {
			return aside
		}
	}
	return ""
}

// TapName returns the name beside path under which `uds tap` keeps the socket
// that it taps, while a socket of its own with this inode is at path. So what
// belongs to whom can be told from the files alone, whichever process has died.
func TapName(path string, inode uint64) string {
	return beside(path, fmt.Sprintf(".tap-%d", inode))
}

// tapped makes st, which describes the file at path, that of the socket which a
// tap has put aside, and returns its name; "" if path is not tapped. A tap gives
// its own socket the same owner.
func tapped(path string, st *unix.Stat_t) string {
	aside := TapName(path, st.Ino)
	var behind unix.Stat_t
	if unix.Lstat(aside, &behind) != nil || behind.Mode&unix.S_IFMT != unix.S_IFSOCK || behind.Uid != st.Uid {
		return ""
	}
	*st = behind
	return aside
}

// KilledTap returns what to do about a socket file at path that no process serves,
// and which a killed `uds tap` has left; "" about any other.
func KilledTap(path string) string {
	at := FollowLinks(path)
	var st unix.Stat_t
	if unix.Lstat(at, &st) != nil || tapped(at, &st) == "" {
		return ""
	}
	return killedTap(path)
}

func killedTap(path string) string {
	return fmt.Sprintf("a uds tap of %s was killed, and its server may still run; uds tap --undo %s gives the name back", path, path)
}

// FollowLinks follows symbolic links at the name itself. Its directory stays as
// written, because it may be that of another mount namespace, /proc/PID/root/DIR.
func FollowLinks(path string) string {
	const most = 40 // as in the kernel
	for range most {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			dir, _ := filepath.Split(path)
			to = dir + to
		}
		path = to
	}
	return path
}

func (f *file) is(st *unix.Stat_t) bool { return st.Dev == f.dev && st.Ino == f.ino }

// removeStale makes room at path for a new socket. It removes a socket that no
// process serves, and nothing else. The caller holds the lock of path.
func removeStale(path string) error {
	st, err := stale(path)
	if err != nil || st == nil {
		return err
	}
	if !newFile(path, st).ours() {
		return fmt.Errorf("%w: %s changed meanwhile; another process made it, and it is left alone", ErrInUse, path)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove the stale socket %s: %w", path, explainFile(path, err))
	}
	return nil
}

// stale returns the socket file at path that no process serves, or nil if
// nothing is there. Anything else is an error.
func stale(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case err == unix.ENOENT:
		return nil, nil
	case err != nil:
		return nil, Explain(path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return nil, fmt.Errorf("%w: %s is a %s; it is left alone; remove it yourself or choose another path%s",
			ErrNotSocket, path, why.Kind(st.Mode), why.Empty(path))
	}
	// connect(2) to a regular file fails just like one to a stale socket, so
	// lstat comes first.
	switch t, err := Probe(path, nil); err {
	case unix.ECONNREFUSED:
		behind := st
		if aside := tapped(path, &behind); aside != "" {
			if _, err := stale(aside); err != nil {
				return nil, fmt.Errorf("%w: %s", ErrInUse, killedTap(path))
			}
		}
		return &st, nil
	case unix.ENOENT:
		return nil, nil
	case ErrBound:
		return nil, fmt.Errorf("%w: %s: %w; wait for it, stop that process, or choose another path", ErrInUse, path, err)
	case nil, unix.EAGAIN:
		return nil, fmt.Errorf("%w: a server answers on %s (%s); stop it first or choose another path", ErrInUse, path, t)
	default:
		return nil, fmt.Errorf("cannot tell whether %s is served, so it is left alone: %w; if no server runs, remove it", path, Explain(path, err))
	}
}

// Stale reports whether path leads to a socket that no process has open.
func Stale(path string) bool {
	st, err := stale(path)
	return st != nil && err == nil
}

// ErrBound means that a process has bound the socket but does not listen on
// it, or does not listen yet.
var ErrBound = errors.New("a process has bound it, and does not listen: a server that is about to start, or a client's own name")

// Probe returns the type of the socket at path, and what connect(2) says. It
// tries to connect with each type; a wrong type fails with EPROTOTYPE, unix(7). If
// it connects, it calls connected, unless that is nil. The error is
//
//	EAGAIN        if a server has it, with a full backlog
//	ErrBound      if a process has bound it and does not listen: only its own type is refused
//	ECONNREFUSED  if no process has it open any more: every type is refused, and there is none
//	EPROTOTYPE    if its type is none of unix(7)
//
// or another errno, with the type that got it: EPERM for a datagram socket that is
// connected to another. Each type has its own abstract names, so for them the
// error is never ErrBound.
func Probe(path string, connected func(t Type, fd int) error) (Type, error) {
	var refused, wrong []Type
	for _, t := range types {
		switch err := connects(t, path, connected); err {
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
		return refused[0], ErrBound
	default:
		return "", unix.ECONNREFUSED
	}
}

// IsOpen reports whether a process has the socket of type t at path open. The
// process does not notice: connecting with another type fails.
func IsOpen(path string, t Type) bool {
	other := Datagram
	if t == Datagram {
		other = Stream
	}
	err := connects(other, path, nil)
	return err != unix.ECONNREFUSED && err != unix.ENOENT
}

func connects(t Type, path string, connected func(t Type, fd int) error) error {
	fd, err := socket(t)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	err = raw.Again(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	if err == nil && connected != nil {
		err = connected(t, fd)
	}
	return err
}

func socket(t Type) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, numbers[t]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EMFILE) {
		return -1, fmt.Errorf("%w (EMFILE); raise the limit of open files", err)
	}
	return fd, os.NewSyscallError("socket", err)
}
