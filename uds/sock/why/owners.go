//go:build linux

package why

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Owners are the owners of the datagram sockets in the network namespace of
// this process, as the kernel has recorded them: neither a name nor the owner
// of a file is evidence. A file system may show any owner, and a name may belong
// to another user's socket.
type Owners struct {
	sockets map[uint32]bool   // by inode
	names   map[string]uint32 // users by abstract name, with its NUL
	files   map[File][]uint32
}

// DatagramOwners asks the kernel for them. It needs no privilege, and its time
// depends on how many sockets there are. The kernel reports owners since Linux
// 5.3.
func DatagramOwners() (*Owners, error) {
	all, err := Sockets()
	if err != nil {
		return nil, err
	}
	o := &Owners{map[uint32]bool{}, map[string]uint32{}, map[File][]uint32{}}
	for _, s := range all {
		if s.SoType != unix.SOCK_DGRAM {
			continue
		}
		if s.UID == nil {
			return nil, errors.New("sock_diag has no owners before Linux 5.3")
		}
		o.sockets[s.Number] = true
		switch {
		case s.File != File{}:
			o.files[s.File] = append(o.files[s.File], *s.UID)
		case s.Name != "":
			o.names[s.Name] = *s.UID
		}
	}
	return o, nil
}

// Has reports whether a socket belongs to the namespace, by the number of its
// inode as fstat(2) returns it.
func (o *Owners) Has(inode uint64) bool { return o.sockets[uint32(inode)] }

// OfName returns the user who owns the socket with an abstract name, @NAME.
func (o *Owners) OfName(name string) (uid uint32, ok bool) {
	uid, ok = o.names["\x00"+name[1:]]
	return uid, ok
}

// OfFile returns the user who owns the socket that was bound to a file. The
// kernel reports only half of the inode's number, so several sockets may seem to
// have the file; then all must have the same owner.
func (o *Owners) OfFile(st *unix.Stat_t) (uid uint32, ok bool) {
	for i, u := range o.files[File{unix.Major(st.Dev)<<20 | unix.Minor(st.Dev), uint32(st.Ino)}] {
		if i > 0 && u != uid {
			return 0, false
		}
		uid, ok = u, true
	}
	return uid, ok
}
