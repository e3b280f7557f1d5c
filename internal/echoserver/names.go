package echoserver

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/transport"
)

// MaxNames bounds the descriptors that the names of datagram clients take.
const MaxNames = 128

// A client is whom a datagram's reply goes to: its address and, if that is a
// path, the user whose socket must be there.
type client struct {
	address transport.Sender
	uid     uint32
}

// clone is the client beyond the receiver's next message.
func (c client) clone() client {
	return client{transport.Sender(strings.Clone(string(c.address))), c.uid}
}

// errNotOwn is a name that leads to something else than a socket of its user's:
// names are looked up where the server is, and a client can replace its file.
var errNotOwn = errors.New("cannot answer at a name that is no socket of the client's own")

// errUnmapped is a client at a path whose user the kernel tells as the one that
// stands for all those it cannot tell: so nobody knows whose the file is.
var errUnmapped = errors.New("cannot answer at a path a client whose user the kernel does not tell here: " +
	"map the user into the server's user namespace, have systemd pass credentials (PassCredentials=yes), " +
	"or allow all such users with --allow-uid and this number")

// names are the socket files of datagram clients. A name is looked at once, and
// replies go to the file that was looked at, by its descriptor, whatever the name
// leads to by then: open(2), O_PATH, and proc(5), /proc/self/fd. So no client can
// have a reply written to a file of another user. Without /proc there are no
// replies to paths; without a second look by name there is nothing to race with.
//
// What is not noticed at once is a client that binds its name anew and keeps the
// old socket open, which gets the replies until the names are forgotten, once a
// second. Usually it closes the old one, which the kernel tells: ECONNREFUSED.
type names struct {
	dir   workDir
	files map[client]name
}

// A name is a file that was looked at: its descriptor, and the address that
// leads to it.
type name struct {
	fd      int
	address transport.Sender
}

// look finds the socket of a client, whose address is a path. The error is
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

// isOwn tells whether a file is a socket that this server receives from: it
// would answer itself without an end.
func (s *server) isOwn(st *unix.Stat_t) bool {
	for _, d := range s.datagrams {
		if d.socket.Is(st) {
			return true
		}
	}
	return false
}

// open opens a path of a client's, which is relative to the directory in which
// the server was started. Names make room for it where the process has no
// descriptor left.
func (n *names) open(path string) (fd int, err error) {
	for {
		fd, err = unix.Openat(n.dir.home, path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR && (err != unix.EMFILE || !n.evict()) {
			return fd, err
		}
	}
}

// evict forgets one name, and tells whether there was any.
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
