package relay

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// A placer receives from streams so that descriptors stay with the bytes that
// they were sent with.
//
// A receive ends after the bytes of a message with descriptors, unix(7), but it
// may begin with the bytes of earlier messages, and does not show where those
// end. So the placer looks first (MSG_PEEK) where such a message ends. Then it
// receives up to one byte less, and behind these the buffer continues with a
// page to which the kernel cannot write: it never takes a part of what it cannot
// copy, so it leaves the whole message with descriptors in the queue.
type placer struct {
	seen [4 << 10]byte // peeking needs only the number of bytes, so they go here again and again
	peek [bufSize / (4 << 10)]unix.Iovec
	wall []byte // a page without access
	iov  [2]unix.Iovec
}

func newPlacer() (p *placer, err error) {
	p = new(placer)
	for i := range p.peek {
		p.peek[i].Base = &p.seen[0]
		p.peek[i].SetLen(len(p.seen))
	}
	p.wall, err = unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return p, os.NewSyscallError("mmap", err)
}

// receive receives from a stream into buf, which holds bufSize bytes: either
// bytes without descriptors, or the bytes of one message with its descriptors.
// At end of file it returns 0 bytes.
func (p *placer) receive(fd int, buf []byte) (n int, files []int, err error) {
	header := unix.Msghdr{Iov: &p.peek[0]}
	header.SetIovlen(len(p.peek))
	n, err = raw.Receive(fd, &header, unix.MSG_PEEK)
	switch {
	case err != nil || n == 0:
		return 0, nil, err
	case header.Flags&unix.MSG_CTRUNC == 0: // no descriptors follow for which there is no room
		n, err = raw.Read(fd, buf[:n])
		return max(n, 0), nil, err
	}
	err = unix.EFAULT
	if n > 1 {
		p.iov[0].Base, p.iov[1].Base = &buf[0], &p.wall[0]
		p.iov[0].SetLen(n - 1)
		p.iov[1].SetLen(len(p.wall))
		header = unix.Msghdr{Iov: &p.iov[0]}
		header.SetIovlen(len(p.iov))
		n, err = raw.Receive(fd, &header, 0)
	}
	if err == unix.EFAULT { // they come with the next byte
		n, files, _, err = sock.ReceiveFiles(fd, buf, sock.MaxRights)
	}
	return max(n, 0), files, err
}
