package server

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// MaxNames limits the number of descriptors that are open for the names of
// datagram clients.
const MaxNames = 128

// A client is the receiver of a datagram's reply: its address, and the user who
// must own the socket there. A relay's client without an address is one process,
// if its id is known.
type client struct {
	address sock.Sender
	uid     uint32
	pid     int32
}

// clone returns a copy that stays valid after the receiver's next message.
func (c client) clone() client {
	c.address = sock.Sender(strings.Clone(string(c.address)))
	return c
}

// errNotOwn means that a name leads to something other than a socket of the
// client's user: the server looks names up in its own file system and its own
// network namespace, and a client can replace its file.
var errNotOwn = errors.New("cannot reply to a name that is not the client's own socket")

// errOwner means that the server cannot know whether it is. It is wrapped with
// the reason.
var errOwner = errors.New("cannot reply, because the kernel does not report the owner of the socket")

// errUnmapped means that the kernel reports the client's user as the overflow
// user, which stands for all users without a number in this namespace. So the
// server cannot know who owns the client's socket.
var errUnmapped = errors.New("cannot reply, because the kernel does not report the client's user here; " +
	"map the user into the server's user namespace, have systemd pass credentials (PassCredentials=yes), " +
	"or allow all such users with --allow-uid and this number")

// names are the sockets of datagram clients. The server looks each name up
// once, and sends replies to that file by its descriptor, wherever the name
// leads by then: open(2), O_PATH, and proc(5), /proc/self/fd. So no client can
// make the server write a reply to a file of another user: there is no second
// look-up to race with. Without /proc there are no replies to paths.
//
// An abstract name belongs to a network namespace, and the kernel reports a
// client's name without it. So the name may be that of another user's socket in
// the server's namespace, and the kernel's record of the owner decides, see
// [searches].
//
// Two cases are not noticed at once. A client binds its name again and keeps
// the old socket open: the old socket gets the replies until the server forgets
// all names, once a second. Usually the client closes the old socket, and the
// kernel reports ECONNREFUSED. And if an abstract name passes from a client to
// another user within that second, that user gets the replies.
type names struct {
	dir   workDir
	files map[client]name
	owned map[client]bool // abstract names
	// Devices of file systems whose owners are the kernel's own; others may
	// show any owner.
	plain map[uint64]bool
	searches
}

// A name is a file that was looked up: its descriptor, and the address that
// leads to it.
type name struct {
	fd      int
	address sock.Sender
}

func newNames(s *Server) names {
	return names{
		workDir{home: unix.AT_FDCWD, fds: -1}, map[client]name{}, map[client]bool{}, map[uint64]bool{},
		searches{found: s.found, post: s.Loop.Post, asked: map[client]bool{}, users: map[place]int{}},
	}
}

// look returns the address for replies to a client. The error is errNotOwn, an
// errno of open(2), or EAGAIN: then the search takes time, and [Server.found]
// gets its result.
func (s *Server) look(c client) (sock.Sender, error) {
	if !c.address.IsPath() {
		if s.names.owned[c] {
			return c.address, nil
		}
	} else if n, ok := s.names.files[c]; ok {
		return n.address, nil
	} else if n, err := s.openCached(c); err != unix.EAGAIN {
		return n.address, err
	}
	s.startSearch(c)
	return "", unix.EAGAIN
}

// startSearch starts a search for a client.
func (s *Server) startSearch(c client) {
	var own []uint64
	for _, d := range s.datagrams {
		own = append(own, d.inode)
	}
	s.names.ask(c, s.names.dir.home, own)
}

// openCached is look for a path that needs no other process: all of it is in
// the kernel's cache, openat2(2), RESOLVE_CACHED. That is the rule, because the
// client has just bound it. EAGAIN means that it is not there, or that the owner
// of the file does not decide.
func (s *Server) openCached(c client) (n name, err error) {
	fd, err := s.names.open(c.address.String())
	switch err {
	case nil:
	case unix.ENOSYS, unix.EINVAL, unix.EPERM: // before Linux 5.12, or seccomp(2)
		return n, unix.EAGAIN
	default:
		return n, err
	}
	var x unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &x)
	if err == nil {
		st := unix.Stat_t{Mode: uint32(x.Mode), Uid: x.Uid, Ino: x.Ino, Dev: unix.Mkdev(x.Dev_major, x.Dev_minor)}
		if err = judge(c, &st); err == nil && s.names.plain[st.Dev] {
			return s.keepFile(c, fd, &st)
		}
	}
	_ = unix.Close(fd)
	if err != errNotOwn {
		err = unix.EAGAIN
	}
	return n, err
}

// judge returns nil if a file is shown as a socket of the client's user,
// errNotOwn if it is not a socket, and errOwner if another owner is shown.
func judge(c client, st *unix.Stat_t) error {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return errNotOwn
	case st.Uid != c.uid:
		return errOwner
	}
	return nil
}

// keepFile remembers the file of a client, and takes over its descriptor.
func (s *Server) keepFile(c client, fd int, st *unix.Stat_t) (name, error) {
	if s.isOwn(st) {
		_ = unix.Close(fd)
		return name{}, errNotOwn
	}
	s.names.forget(c)
	if len(s.names.files)+maxSearches >= MaxNames {
		s.names.evict()
	}
	n := name{fd, sock.Path(s.names.dir.prefix() + strconv.Itoa(fd))}
	s.names.files[c.clone()] = n
	return n, nil
}

// found gets the result of a search, and drops the replies that cannot be sent.
func (s *Server) found(f finding) {
	switch {
	case f.err == unix.EMFILE && s.names.evict():
		return // the replies start another search
	case f.err != nil:
		f.close()
	case f.fd < 0 && s.isOwnName(f.client.address.String()):
		f.err = errNotOwn
	case f.fd < 0:
		s.names.owned[f.client] = true
	default:
		if f.plain {
			s.names.plain[f.st.Dev] = true
		}
		_, f.err = s.keepFile(f.client, f.fd, &f.st)
	}
	for _, d := range s.datagrams {
		d.pause = minPause // replies wait for the result
		if q := d.queues[f.client]; q != nil && f.err != nil {
			d.dropQueue(f.client, q, f.err)
		}
	}
}

// isOwn reports whether a file is a socket that this server receives from: the
// server would reply to itself without end.
func (s *Server) isOwn(st *unix.Stat_t) bool {
	return slices.ContainsFunc(s.datagrams, func(d *datagrams) bool { return d.socket.Is(st) })
}

// isOwnName is isOwn for an abstract name.
func (s *Server) isOwnName(name string) bool {
	return slices.ContainsFunc(s.datagrams, func(d *datagrams) bool { return d.socket.Addr.Path == name })
}

// open opens a client's path without waiting for another process. If the
// process has no descriptor left, it closes one of the names first.
func (n *names) open(path string) (fd int, err error) {
	for {
		fd, err = open(n.dir.home, path, resolveCached)
		if err != unix.EMFILE || !n.evict() {
			return fd, err
		}
	}
}

// resolveCached is RESOLVE_CACHED of linux/openat2.h.
const resolveCached = 0x20

// open opens a client's path, which is relative to the directory in which the
// server was started.
func open(home int, path string, resolve uint64) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	for {
		if resolve == 0 {
			fd, err = unix.Openat(home, path, flags, 0)
		} else {
			fd, err = unix.Openat2(home, path, &unix.OpenHow{Flags: flags, Resolve: resolve})
		}
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// evict forgets one name, and reports whether there was any.
func (n *names) evict() bool {
	for c := range n.files {
		n.forget(c)
		return true
	}
	return false
}

func (n *names) forget(c client) {
	if known, ok := n.files[c]; ok {
		_ = unix.Close(known.fd)
		delete(n.files, c)
	}
	delete(n.owned, c)
}

func (n *names) forgetAll() {
	for n.evict() {
	}
	clear(n.owned)
	clear(n.plain) // another file system may get the device's number
}

func (n *names) close() {
	n.forgetAll()
	n.dir.close()
}
