package fileserver

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/files"
)

const (
	bufferSize = 256 << 10 // bytes of one read
	windowSize = 16 << 20  // bytes that are mapped at a time, a multiple of the page size
)

// An input is a descriptor of a stranger's.
type input struct {
	fd     int
	size   int64
	seek   int // fd once more, with an offset of its own: memory that cannot change; or -1
	mapped int64
}

// inspect looks at what fd is. The error is one to tell the client.
func inspect(fd int) (*input, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	switch {
	case err != nil:
		return nil, os.NewSyscallError("fcntl F_GETFL", err)
	case flags&unix.O_PATH != 0:
		return nil, errors.New("the descriptor is one of a path alone (O_PATH): open the file for reading")
	case flags&unix.O_ACCMODE == unix.O_WRONLY:
		return nil, errors.New("the descriptor is open for writing only: open the file for reading")
	}
	sealed := sealed(fd)
	// After the seals: from then on the size is the last.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("it is a %s: only regular files and memory are read", kind(st.Mode))
	}
	if kernels(fd) {
		return nil, errors.New("it is a file of the kernel's, of proc or sysfs for example, and to read it may never end: send a copy")
	}
	in := &input{fd: fd, size: st.Size, seek: -1}
	if sealed {
		in.seek = reopen(fd)
	}
	return in, nil
}

// reopen opens the memory that fd is once more, as the offset of fd is its
// sender's, too: open(2), "open file description". -1 where it cannot be: it can
// be read all the same. O_NONBLOCK is for a lease of the sender's, fcntl(2),
// F_SETLEASE, that would delay it.
func reopen(fd int) int {
	own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return own
}

// close closes what inspect opened; fd is the caller's.
func (in *input) close() {
	if in.seek >= 0 {
		_ = unix.Close(in.seek)
	}
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	default:
		return "descriptor of no file"
	}
}

// kernels tells whether fd is a file that the kernel makes up as it is read, and
// not a file of anybody's.
func kernels(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return true
	}
	// The kernel's number has 32 bits; in Go it is signed on 32-bit machines, and
	// negative there for some.
	switch uint32(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.CGROUP_SUPER_MAGIC,
		unix.CGROUP2_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.SELINUX_MAGIC, unix.NSFS_MAGIC:
		return true
	}
	return false
}

// sealed tells whether fd is memory that nobody can change any more. Memory of
// huge pages is left out: touching a hole of it is a SIGBUS where none are free.
func sealed(fd int) bool {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || have&files.Seals != files.Seals {
		return false
	}
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// part adds one part of the file, from offset at, to sum, and tells how many
// bytes it had: at most a window, or what buf holds.
func (in *input) part(sum hash.Hash, buf []byte, at int64) (int64, error) {
	if n := in.window(at); n > int64(len(buf)) {
		// A private mapping of what cannot change is a shared one, and one that
		// kernels before 6.7 allow of a file with F_SEAL_WRITE.
		window, err := unix.Mmap(in.fd, at, int(n), unix.PROT_READ, unix.MAP_PRIVATE)
		if err == nil {
			sum.Write(window)
			in.mapped += n
			return n, os.NewSyscallError("munmap", unix.Munmap(window))
		} // it can be read all the same
	}
	buf = buf[:min(int64(len(buf)), in.size-at)]
	n, err := pread(in.fd, buf, at)
	sum.Write(buf[:n])
	if err == nil && n < len(buf) {
		err = errors.New("it became shorter while it was read: send it again when it is complete")
	}
	return int64(n), err
}

// window is how many bytes from offset at hold data and may be mapped.
func (in *input) window(at int64) int64 {
	if in.seek < 0 {
		return 0
	}
	if data, err := unix.Seek(in.seek, at, unix.SEEK_DATA); err != nil || data != at {
		return 0
	}
	hole, err := unix.Seek(in.seek, at, unix.SEEK_HOLE)
	if err != nil {
		return 0
	}
	return min(hole, in.size, at+windowSize) - at
}

// pread fills buf from offset at, or reads less at the end of the file.
func pread(fd int, buf []byte, at int64) (n int, err error) {
	for n < len(buf) {
		m, err := unix.Pread(fd, buf[n:], at+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, fmt.Errorf("read it: %w", err)
		case m == 0:
			return n, nil
		default:
			n += m
		}
	}
	return n, nil
}

// sum reads all of the input. Each part is read in a turn, which may end the
// reading with an error.
func (in *input) sum(turn func(func(buf []byte) error) error) (files.Sum, error) {
	s, sum := files.Sum{Size: in.size}, sha256.New()
	for at := int64(0); at < in.size; {
		err := turn(func(buf []byte) error {
			n, err := in.part(sum, buf, at)
			at += n
			return err
		})
		if err != nil {
			return s, err
		}
	}
	sum.Sum(s.SHA256[:0])
	return s, nil
}
