package server

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/why"
)

// The limits of searches at the same time, in all and for one user: each takes
// a thread if the name is on a file system that does not answer. Searches for
// abstract names wait for nothing but the kernel, so they have places of their own.
const (
	maxSearches     = 32
	maxUserSearches = 8
)

// searches find out beside the loop who owns the sockets of clients. That can
// take long: a file system may not answer, and the kernel's list of sockets may
// be long.
type searches struct {
	found func(finding)     // gets the result of each, on the loop's goroutine
	post  func(func()) bool // of the loop
	asked map[client]bool   // in progress; only the loop uses it
	users map[place]int     // searches in progress for a user; only the loop uses it

	list   sync.Mutex // held while the kernel lists the sockets
	listed time.Time  // when the kernel began the last list
	owners *why.Owners
	err    error
}

type place struct {
	uid      uint32
	abstract bool
}

func (c client) place() place { return place{c.uid, !c.address.IsPath()} }

// A finding is the end of a search: the file of the client's socket, if it has
// one, or the reason why the client gets no reply.
type finding struct {
	client client
	fd     int // -1 for an abstract name
	st     unix.Stat_t
	plain  bool // the file system's owners are the kernel's own
	err    error
}

// ask starts a search, unless there is one for that client or there are too
// many. home is the directory of relative paths, own are the inodes of the
// server's sockets.
func (s *searches) ask(c client, home int, own []uint64) {
	if s.asked[c] || len(s.asked) >= maxSearches || s.users[c.place()] >= maxUserSearches {
		return
	}
	c = c.clone()
	s.asked[c] = true
	s.users[c.place()]++
	go func() {
		f := s.search(c, home, own)
		if !s.post(func() { s.end(f) }) {
			f.close()
		}
	}()
}

// end ends a search.
func (s *searches) end(f finding) {
	delete(s.asked, f.client)
	if s.users[f.client.place()]--; s.users[f.client.place()] == 0 {
		delete(s.users, f.client.place())
	}
	if len(s.asked) == 0 {
		s.list.Lock()
		s.owners = nil // the list may be long; no search uses it
		s.list.Unlock()
	}
	s.found(f)
}

func (s *searches) search(c client, home int, own []uint64) finding {
	f := finding{client: c, fd: -1, err: errOwner}
	if c.address.IsPath() {
		if f.fd, f.err = open(home, c.address.String(), 0); f.err == nil {
			f.err = os.NewSyscallError("fstat", unix.Fstat(f.fd, &f.st))
		}
		if f.err == nil {
			f.err = judge(c, &f.st)
		}
		if f.plain = f.err == nil && showsOwners(f.fd); f.plain || f.err != nil && f.err != errOwner {
			return f
		}
	}
	shown := f.err
	for range 3 { // the kernel may leave a socket out of its list while others are closed
		if f.err = s.ownedBy(&f, own); !errors.Is(f.err, errOwner) {
			return f
		}
	}
	if shown == nil {
		f.err = nil // the kernel knows nothing else
	}
	return f
}

// showsOwners reports whether the owners that a file system shows are the
// kernel's own. A file system of another process or machine can show any.
func showsOwners(fd int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	switch uint32(fs.Type) {
	case unix.FUSE_SUPER_MAGIC, unix.NFS_SUPER_MAGIC, unix.V9FS_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC:
		return false
	}
	return true
}

// ownedBy returns nil if the kernel's record says that the client's user owns
// its socket. The error is errNotOwn, or wraps errOwner.
func (s *searches) ownedBy(f *finding, own []uint64) error {
	owners, err := s.listSince(time.Now())
	var uid uint32
	var known bool
	switch {
	case err != nil:
	case slices.ContainsFunc(own, func(inode uint64) bool { return !owners.Has(inode) }):
		err = errors.New("the server's socket belongs to another network namespace than its process")
	case f.fd < 0:
		if uid, known = owners.OfName(f.client.address.String()); !known {
			err = errors.New("its abstract name does not exist in the server's network namespace; bind a path")
		}
	default:
		if uid, known = owners.OfFile(&f.st); !known {
			err = fmt.Errorf("the file system shows user %d as the owner of its socket, and the socket belongs to another network namespace", f.st.Uid)
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w of a client of user %d: %w", errOwner, f.client.uid, err)
	case uid != f.client.uid:
		return errNotOwn
	}
	return nil
}

// listSince returns a list of sockets that the kernel began at a time or later.
// So one list serves all searches that waited for it.
func (s *searches) listSince(t time.Time) (*why.Owners, error) {
	s.list.Lock()
	defer s.list.Unlock()
	if s.listed.Before(t) {
		s.listed = time.Now()
		s.owners, s.err = why.DatagramOwners()
	}
	return s.owners, s.err
}

func (f *finding) close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
	}
}
