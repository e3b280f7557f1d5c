//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// A place is the name of a socket that is tapped, in its directory. A tap has
// two names beside it:
//
//	.NAME.tap-new    its own socket, before that has mode and owner. Its lock is the tap's.
//	.NAME.tap-INODE  the real socket, while the tap's own, with this inode, is at NAME;
//	                 before that, the tap's own
//
// renameat2(2), RENAME_EXCHANGE, swaps the second and NAME at once, and
// rename(2) gives NAME back at once. So the name is served at every moment, and
// whichever process dies, the names and inodes tell what is to be done.
type place struct {
	dir  *os.File // O_PATH
	at   string   // the directory, before a name in it
	name string
}

// findPlace follows symbolic links at the name itself. The directory may be that
// of another mount namespace, /proc/PID/root/DIR.
func findPlace(path string) (*place, error) {
	if sock.IsAbstract(path) {
		return nil, errors.New("an abstract name stays with its socket until that is closed, so it cannot be tapped; send the clients to another name, and use uds forward")
	}
	at, name := filepath.Split(sock.FollowLinks(path))
	if name == "" {
		return nil, errors.New("name the socket's file, not a directory")
	}
	dir, err := os.OpenFile(cmp.Or(at, "."), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, sock.Explain(path, err)
	}
	p := &place{dir, at, name}
	const digits = 20 // of an inode
	if len(p.aside(0))+digits > sock.MaxPath {
		p.at = fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())
	}
	if n := len(p.aside(0)) + digits - sock.MaxPath; n > 0 {
		_ = dir.Close()
		return nil, fmt.Errorf("the name of its file is %d bytes too long, because a tap needs longer ones beside it; use uds forward", n)
	}
	return p, nil
}

func (p *place) path() string              { return p.at + p.name }
func (p *place) aside(inode uint64) string { return sock.TapName(p.path(), inode) }
func (p *place) close()                    { _ = p.dir.Close() }
func (p *place) inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return st.Ino, err
}

// claim makes a socket at .NAME.tap-new. While it is open, no other tap, guard or
// --undo can claim the place.
func (p *place) claim(t sock.Type) (*sock.Socket, error) {
	own, err := sock.ListenConfig{Mode: 0o600}.Listen(sock.Addr{Type: t, Path: p.at + "." + p.name + ".tap-new"})
	if errors.Is(err, sock.ErrInUse) {
		err = fmt.Errorf("another uds tap runs there, end it first: %w", err)
	}
	return own, err
}

// undo repairs what taps that were killed have left, and returns what it did.
func (p *place) undo() (done string, err error) {
	own, err := p.claim(sock.Stream)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	names, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", p.dir.Fd()))
	if err != nil {
		return "", err
	}
	for _, n := range names {
		number, ok := strings.CutPrefix(n.Name(), "."+p.name+".tap-")
		if inode, err := strconv.ParseUint(number, 10, 64); ok && err == nil && n.Type() == os.ModeSocket {
			what, err := p.giveBack(inode, false)
			if err != nil {
				return done, err
			}
			done = strings.TrimPrefix(done+"; "+what, "; ")
		}
	}
	return done, nil
}

// giveBack gives the name back, whose tap has or had a socket with this inode,
// and returns what it did. A tap that is alive has the inode. Otherwise another
// file may have got its number, so a socket that is served is left alone, and one
// of another owner: no tap has put that aside.
func (p *place) giveBack(inode uint64, alive bool) (done string, err error) {
	const back, taken = "gave the name back", "removed the old socket file, because its name was taken or removed meanwhile"
	var now, aside unix.Stat_t
	hidden := p.aside(inode)
	if err := unix.Lstat(hidden, &aside); err != nil {
		return "", err
	}
	missing := unix.Lstat(p.path(), &now)
	switch {
	case aside.Ino == inode:
		return "removed the tap's socket, which was not in place yet", unix.Unlink(hidden)
	case missing != nil && missing != unix.ENOENT:
		return "", missing
	case missing == nil && now.Ino == inode && !alive:
		if aside.Uid != now.Uid {
			return "", fmt.Errorf("%s is left alone, because it has another owner than %s", hidden, p.path())
		}
		switch _, err := sock.Probe(p.path(), nil); err {
		case unix.ECONNREFUSED:
			return back, unix.Rename(hidden, p.path())
		case nil, unix.EAGAIN, sock.ErrBound:
			return taken, unix.Unlink(hidden)
		default:
			return "", fmt.Errorf("cannot tell whether %s is served, so it is left alone: %w", p.path(), sock.Explain(p.path(), err))
		}
	case missing == nil && now.Ino == inode, missing != nil && !alive && !sock.Stale(hidden):
		return back, unix.Rename(hidden, p.path())
	default: // by another server, or by the real one at its end
		return taken, unix.Unlink(hidden)
	}
}

// exchange puts the tap's socket in the place of the real one.
func (p *place) exchange(inode uint64, file *unix.Stat_t) error {
	hidden := p.aside(inode)
	swap := func() error {
		return unix.Renameat2(unix.AT_FDCWD, hidden, unix.AT_FDCWD, p.path(), unix.RENAME_EXCHANGE)
	}
	switch err := swap(); err {
	case nil:
	case unix.EINVAL, unix.ENOSYS:
		return fmt.Errorf("the file system cannot exchange two names at once (renameat2, RENAME_EXCHANGE: %w), so clients would be refused; use uds forward", err)
	default:
		return sock.Explain(p.path(), err)
	}
	if now, err := p.inode(hidden); err != nil || now != file.Ino {
		return errors.Join(errors.New("it was replaced meanwhile; try again"), swap())
	}
	return nil
}

// copyAttributes gives an open file the owner, the access control list, the label
// and the mode of another. Their paths in /proc lead to these files, whatever other
// users put in the place of their names.
func copyAttributes(to, from *os.File, file *unix.Stat_t) error {
	target, source := fmt.Sprintf("/proc/self/fd/%d", to.Fd()), fmt.Sprintf("/proc/self/fd/%d", from.Fd())
	if err := unix.Chown(target, int(file.Uid), int(file.Gid)); err != nil {
		return fmt.Errorf("the socket of a tap must have the owner of the real one, %d:%d (%w): run it as root, or as that user in that group", file.Uid, file.Gid, err)
	}
	for _, attribute := range []string{"system.posix_acl_access", "security.selinux"} {
		value := make([]byte, 64<<10) // the largest value, xattr(7)
		n, err := unix.Getxattr(source, attribute, value)
		switch {
		case err == nil:
			err = unix.Setxattr(target, attribute, value[:n], 0)
		case attribute == "system.posix_acl_access": // a new file may have got one from its directory
			if err = unix.Removexattr(target, attribute); err == unix.ENODATA {
				err = nil
			}
		default:
			err = nil
		}
		if err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("set %s of the tap's socket as that of the real one: %w", attribute, err)
		}
	}
	return os.NewSyscallError("chmod", unix.Chmod(target, file.Mode&0o7777))
}

// look opens the file at a path, which is not a link, for [os.File.Fd] alone.
func look(path string) (f *os.File, st unix.Stat_t, err error) {
	if f, err = os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0); err == nil {
		err = os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &st))
	}
	return f, st, err
}

// check refuses a file that cannot be tapped.
func (p *place) check(file *os.File, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New(why.Refused(p.path()))
	}
	if text := why.Mounted(int(file.Fd())); text != "" {
		return errors.New(text)
	}
	return nil
}
