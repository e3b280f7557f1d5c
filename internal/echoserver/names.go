package echoserver

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/transport"
)

// MaxNames limits the number of descriptors that are open for the names of
// datagram clients.
const MaxNames = 128

// A client is the receiver of a datagram's reply: its address and, if that is
// a path, the user who must own the socket there.
type client struct {
	address transport.Sender
	uid     uint32
}

// clone returns a copy that stays valid after the receiver's next message.
func (c client) clone() client {
	return client{transport.Sender(strings.Clone(string(c.address))), c.uid}
}

// errNotOwn means that a name leads to something other than a socket of the
// client's user. The server looks names up in its own file system, and a
// client can replace its file.
var errNotOwn = errors.New("cannot reply to a name that is not the client's own socket")

// errUnmapped means that the client has a path as its address, and that the
// kernel reports its user as the overflow user, which stands for all users
// without a number in this namespace. So the server cannot know who owns the
// file.
var errUnmapped = errors.New("cannot reply to a path, because the kernel does not report the client's user here; " +
	"map the user into the server's user namespace, have systemd pass credentials (PassCredentials=yes), " +
	"or allow all such users with --allow-uid and this number")

// names are the socket files of datagram clients. The server looks each name
// up once, and sends replies to that file by its descriptor, wherever the name
// leads by then: open(2), O_PATH, and proc(5), /proc/self/fd. So no client can
// make the server write a reply to a file of another user: there is no second
// look-up to race with. Without /proc there are no replies to paths.
//
// One case is not noticed at once: a client that binds its name again and
// keeps the old socket open. The old socket gets the replies until the server
// forgets all names, once a second. Usually the client closes the old socket,
// and the kernel reports ECONNREFUSED.
type names struct {
	dir   workDir
	files map[client]name
}

// A name is a file that was looked up: its descriptor, and the address that
// leads to it.
type name struct {
	fd      int
	address transport.Sender
}

// look opens the socket file of a client whose address is a path. The error is
// errNotOwn or an errno of open(2).
func (s *server) look(c client) (name, error) {
	if n, ok := s.names.files[c]; ok {
		return n, nil
	}
	fd, err := s.names.open(c.address.String())
	if err != nil {
		return name{}, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != c.uid || s.isOwn(&st)) {
		err = errNotOwn
	}
	if err != nil {
		_ = unix.Close(fd)
		return name{}, err
	}
	if len(s.names.files) >= MaxNames {
		s.names.evict()
	}
	n := name{fd, transport.Path(s.names.dir.prefix() + strconv.Itoa(fd))}
	s.names.files[c.clone()] = n
	return n, nil
}

// isOwn reports whether a file is a socket that this server receives from: the
// server would reply to itself without end.
func (s *server) isOwn(st *unix.Stat_t) bool {
	for _, d := range s.datagrams {
		if d.socket.Is(st) {
			return true
		}
	}
	return false
}

// open opens a client's path, which is relative to the directory in which the
// server was started. If the process has no descriptor left, it closes one of
// the names first.
func (n *names) open(path string) (fd int, err error) {
	for {
		fd, err = unix.Openat(n.dir.home, path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR && (err != unix.EMFILE || !n.evict()) {
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
}

func (n *names) forgetAll() {
	for n.evict() {
	}
}
