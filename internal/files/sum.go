package files

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"

	"golang.org/x/sys/unix"
)

const (
	bufferSize = 256 << 10 // bytes of one read
	windowSize = 16 << 20  // bytes to map at a time, a multiple of the page size
)

// An input is a descriptor that another process sent.
type input struct {
	fd     int
	size   int64
	seek   int // a second descriptor of fd, with an offset of its own, for memory that cannot change; or -1
	mapped int64
}

// inspect examines fd. Its error is meant for the client.
func inspect(fd int) (*input, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	switch {
	case err != nil:
		return nil, os.NewSyscallError("fcntl F_GETFL", err)
	case flags&unix.O_PATH != 0:
		return nil, errors.New("the descriptor is for a path only (O_PATH); open the file for reading")
	case flags&unix.O_ACCMODE == unix.O_WRONLY:
		return nil, errors.New("the descriptor is open for writing only; open the file for reading")
	}
	sealed := sealed(fd)
	// Read the size after the seals: from then on the size cannot change.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("it is a %s; only regular files and memory are read", kind(st.Mode))
	}
	if kernels(fd) {
		return nil, errors.New("it is a file of the kernel, of proc or sysfs for example, and reading it may never end; send a copy")
	}
	in := &input{fd: fd, size: st.Size, seek: -1}
	if sealed {
		in.seek = reopen(fd)
	}
	return in, nil
}

// reopen opens the memory of fd a second time, because the offset of fd also
// belongs to its sender: open(2), "open file description". It returns -1 if
// that fails; the memory can be read anyway. O_NONBLOCK avoids the delay of a
// lease that the sender may hold, fcntl(2), F_SETLEASE.
func reopen(fd int) int {
	own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return own
}

// close closes what inspect opened; the caller closes fd.
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
		return "descriptor without a file"
	}
}

// kernels reports whether fd is a file whose content the kernel makes while it
// is read, as in /proc.
func kernels(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return true
	}
	// The kernel's number has 32 bits. In Go it is signed on 32-bit machines,
	// and negative there for some file systems.
	switch uint32(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.CGROUP_SUPER_MAGIC,
		unix.CGROUP2_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.SELINUX_MAGIC, unix.NSFS_MAGIC:
		return true
	}
	return false
}

// sealed reports whether fd is memory that no process can change any more. It
// excludes memory of huge pages: touching a hole in it raises SIGBUS if none
// are free.
func sealed(fd int) bool {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || have&Seals != Seals {
		return false
	}
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// part adds one part of the file, from offset at, to sum, and returns its size
// in bytes: at most a window, or the size of buf.
func (in *input) part(sum hash.Hash, buf []byte, at int64) (int64, error) {
	if n := in.window(at); n > int64(len(buf)) {
		// For memory that cannot change, a private mapping equals a shared
		// one. Kernels before 6.7 allow only the private one for a file with
		// F_SEAL_WRITE.
		window, err := unix.Mmap(in.fd, at, int(n), unix.PROT_READ, unix.MAP_PRIVATE)
		if err == nil {
			sum.Write(window)
			in.mapped += n
			return n, os.NewSyscallError("munmap", unix.Munmap(window))
		} // pread can read it anyway
	}
	buf = buf[:min(int64(len(buf)), in.size-at)]
	n, err := pread(in.fd, buf, at)
	sum.Write(buf[:n])
	if err == nil && n < len(buf) {
		err = errors.New("it became shorter while it was read; send it again when it is complete")
	}
	return int64(n), err
}

// window returns how many bytes from offset at hold data and may be mapped.
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

// sum reads the whole input. Each part is read in a turn, which may end the
// reading with an error.
func (in *input) sum(turn func(func(buf []byte) error) error) (Sum, error) {
	s, sum := Sum{Size: in.size}, sha256.New()
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
