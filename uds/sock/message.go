//go:build linux

package sock

import (
	"fmt"
	"net/netip"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// A SizeError means that a message is too large: to be received, which is an
// [ErrTruncated], or to be sent, which is EMSGSIZE.
type SizeError struct {
	Size, Limit int // in bytes
	err         error
}

func (e *SizeError) Error() string {
	if e.err == ErrTruncated {
		return fmt.Sprintf("%v: %d bytes, %d fit", e.err, e.Size, e.Limit)
	}
	return fmt.Sprintf("%v (EMSGSIZE): %d bytes, the socket sends at most %d; raise SO_SNDBUF", e.err, e.Size, e.Limit)
}

// Unwrap returns ErrTruncated or EMSGSIZE.
func (e *SizeError) Unwrap() error { return e.err }

// A Receiver receives messages from datagram and seqpacket sockets, one at a
// time and whole, and can send a reply to the sender of the last one.
// From stream sockets it receives the available bytes. It does not allocate
// after it is made.
type Receiver struct {
	buf     []byte
	name    unix.RawSockaddrAny
	nameLen uint32
	control [controlLen + rightsLen]byte
	rights  bool // see TakeRights
	iov     unix.Iovec
	hdr     unix.Msghdr
}

// controlLen is room for SCM_CREDENTIALS, unix(7), which come first, and for
// nothing else. So the kernel installs no descriptor that a peer sends along.
const controlLen = unix.SizeofCmsghdr + (unix.SizeofUcred+7)&^7

// MaxRights is the largest number of descriptors in one message: SCM_MAX_FD,
// unix(7).
const MaxRights = 253

// rightsLen is room for as many descriptors as one message can carry.
const rightsLen = unix.SizeofCmsghdr + 4*MaxRights

// NewReceiver makes a receiver for messages of at most size bytes.
func NewReceiver(size int) *Receiver { return &Receiver{buf: make([]byte, max(size, 1))} }

// TakeRights makes the receiver accept the descriptors that come with a
// message, see [Receiver.Files]. Without room for them the kernel closes them in
// recvmsg(2), and closing can wait for another process.
func (r *Receiver) TakeRights() { r.rights = true }

// Files returns the descriptors that came with the last message: after
// [Receiver.ReceiveFiles], or with an error, [ErrDescriptors] or that of a
// message larger than the receiver. The caller closes them, and not where it
// must not wait. If the process had reached its limit of open files, the kernel
// has closed the others. Without [Receiver.TakeRights] there are none.
func (r *Receiver) Files() (fds []int) {
	if r.rights && r.withRights() {
		fds, _, _ = ParseControl(r.control[:r.hdr.Controllen])
	}
	return fds
}

// withRights reports whether descriptors came with the last message.
func (r *Receiver) withRights() bool {
	if r.hdr.Flags&unix.MSG_CTRUNC != 0 || r.hdr.Controllen > controlLen {
		return true
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&r.control[0]))
	return r.hdr.Controllen > 0 && h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS
}

// Receive receives the next message of fd, which is valid until the next call.
// The error is EAGAIN if there is none, a [SizeError] for a message larger
// than the receiver, [ErrDescriptors], or an errno of recvmsg(2). An empty
// message is a valid message; on a seqpacket socket the end of the connection
// looks the same, see [Receiver.ReceiveRecord].
func (r *Receiver) Receive(fd int) ([]byte, error) { return r.receive(fd, 0, false) }

// ReceiveCred is Receive for a socket with [PassCred], which must be on.
func (r *Receiver) ReceiveCred(fd int) ([]byte, error) { return r.receive(fd, controlLen, false) }

// ReceiveFiles is Receive, and ReceiveCred if [PassCred] is on, for a receiver
// that takes descriptors and returns them with their message, see
// [Receiver.Files], also after an error. The error is [ErrOpenFiles] if not
// all could be received.
func (r *Receiver) ReceiveFiles(fd int) ([]byte, error) { return r.receive(fd, 0, true) }

// ReceiveStream receives the available bytes of a stream socket, at most most
// and the receiver's size; zero bytes mean end of file. If descriptors came along, it
// returns [ErrDescriptors]; read(2) would close them silently.
func (r *Receiver) ReceiveStream(fd, most int) ([]byte, error) {
	r.prepare(0)
	r.iov.SetLen(min(most, len(r.buf)))
	n, err := raw.Receive(fd, &r.hdr, unix.MSG_CMSG_CLOEXEC)
	switch {
	case err != nil:
		r.hdr.SetControllen(0)
		return nil, err
	case r.withRights():
		return nil, ErrDescriptors
	}
	return r.buf[:n], nil
}

// Drain ends receiving on a Unix connection, and reports whether it has received
// everything, so that closing it closes nothing that a peer has sent.
func Drain(fd int) bool {
	if unix.Shutdown(fd, unix.SHUT_RD) != nil {
		return false
	}
	n, control, _, err := peek(fd)
	if err != nil || n > 0 {
		return false
	}
	// An empty record comes with credentials. A stream has them at its end, too,
	// but no empty parts.
	sotype, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && (control == 0 || sotype == unix.SOCK_STREAM)
}

// peek looks at the next message of a Unix socket. With [PassCred], even an empty
// one comes with control data.
func peek(fd int) (n, control, flags int, err error) {
	if err := PassCred(fd); err != nil {
		return 0, 0, 0, err
	}
	var b [1]byte
	var creds [controlLen]byte
	n, control, flags, _, err = unix.Recvmsg(fd, b[:], creds[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n, control, flags, err
}

// Read is [Receiver.ReceiveStream] for a socket that [RefusesRights]; read(2)
// costs less than recvmsg(2).
func (r *Receiver) Read(fd, most int) ([]byte, error) {
	n, err := raw.Read(fd, r.buf[:min(most, len(r.buf))])
	if err != nil {
		return nil, err
	}
	return r.buf[:n], nil
}

// ReceiveRecord is Receive for a seqpacket connection whose other end may be
// closed. recvmsg(2) returns 0 both for an empty record and at the end, but
// with SO_PASSCRED on, only a record comes with credentials.
func (r *Receiver) ReceiveRecord(fd int) (record []byte, end bool, err error) {
	if err := PassCred(fd); err != nil {
		return nil, false, err
	}
	return r.receiveRecord(fd)
}

// receiveRecord is ReceiveRecord for a socket with [PassCred] on.
func (r *Receiver) receiveRecord(fd int) (record []byte, end bool, err error) {
	record, err = r.ReceiveCred(fd)
	_, isRecord := r.Cred()
	return record, err == nil && !isRecord, err
}

func (r *Receiver) prepare(control int) {
	r.iov.Base = &r.buf[0]
	r.iov.SetLen(len(r.buf))
	r.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&r.name)), Namelen: unix.SizeofSockaddrAny, Iov: &r.iov}
	r.hdr.SetIovlen(1)
	if r.rights {
		control = len(r.control)
	}
	if control > 0 {
		r.hdr.Control = &r.control[0]
		r.hdr.SetControllen(control)
	}
}

func (r *Receiver) receive(fd, control int, files bool) ([]byte, error) {
	r.prepare(control)
	// MSG_TRUNC asks for the message's real length, recv(2).
	n, err := raw.Receive(fd, &r.hdr, unix.MSG_TRUNC|unix.MSG_CMSG_CLOEXEC)
	r.nameLen = r.hdr.Namelen
	switch {
	case err != nil:
		r.hdr.SetControllen(0)
		return nil, err
	case n > len(r.buf):
		return nil, &SizeError{Size: n, Limit: len(r.buf), err: ErrTruncated}
	case r.withRights() && !files:
		return nil, ErrDescriptors
	case r.hdr.Flags&unix.MSG_CTRUNC != 0:
		return nil, fmt.Errorf("%w: the limit is reached; raise it", ErrOpenFiles)
	}
	return r.buf[:n], nil
}

// NextRecord returns the size in bytes of the message that fd receives next,
// and leaves it in the queue: MSG_PEEK and MSG_TRUNC, recv(2).
func NextRecord(fd int) (int, error) {
	return raw.Receive(fd, new(unix.Msghdr), unix.MSG_PEEK|unix.MSG_TRUNC)
}

// Cred returns the credentials of the last message's sender, as reported by
// the kernel. [PassCred] must have been on.
func (r *Receiver) Cred() (cred unix.Ucred, ok bool) {
	if r.hdr.Controllen < unix.SizeofCmsghdr+unix.SizeofUcred {
		return cred, false
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&r.control[0]))
	if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_CREDENTIALS {
		return cred, false
	}
	return *(*unix.Ucred)(unsafe.Pointer(&r.control[unix.SizeofCmsghdr])), true
}

// Named reports whether the sender of the last message can get a reply. A
// datagram client that has not bound a name cannot.
func (r *Receiver) Named() bool { return r.nameLen > uint32(unsafe.Sizeof(r.name.Addr.Family)) }

// A Sender is the address of a message's sender, in the kernel's form.
type Sender string

// Sender returns the address of the last message's sender.
func (r *Receiver) Sender() Sender {
	return Sender(unsafe.Slice((*byte)(unsafe.Pointer(&r.name)), r.nameLen))
}

// Peek is Sender without a copy: it is valid until the next message.
func (r *Receiver) Peek() Sender {
	return Sender(unsafe.String((*byte)(unsafe.Pointer(&r.name)), int(r.nameLen)))
}

// Path returns the address of a socket file; path has at most [MaxPath]
// bytes.
func Path(path string) Sender {
	sa := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	size := int(unsafe.Offsetof(sa.Path))
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	size += copy(bytes[size:len(bytes)-1], path) + 1
	return Sender(bytes[:size])
}

// IsPath reports whether the address is that of a socket file.
func (s Sender) IsPath() bool {
	return len(s) > len(unixFamily) && s[:len(unixFamily)] == unixFamily && s[len(unixFamily)] != 0
}

// unixFamily is the start of every Unix socket address.
var unixFamily = Path("")[:unsafe.Sizeof(unix.RawSockaddrUnix{}.Family)]

// String returns the address in readable form: a path, an @name, HOST:PORT, or
// "" if the sender has no address.
func (s Sender) String() string {
	var any unix.RawSockaddrAny
	if copy(unsafe.Slice((*byte)(unsafe.Pointer(&any)), unsafe.Sizeof(any)), s) <= int(unsafe.Sizeof(any.Addr.Family)) {
		return ""
	}
	switch any.Addr.Family {
	case unix.AF_UNIX:
		path := string(s[unsafe.Sizeof(any.Addr.Family):])
		if path[0] == 0 {
			return "@" + path[1:]
		}
		path, _, _ = strings.Cut(path, "\x00")
		return path
	case unix.AF_INET:
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(&any))
		return hostPort(a.Addr[:], a.Port)
	case unix.AF_INET6:
		a := (*unix.RawSockaddrInet6)(unsafe.Pointer(&any))
		return hostPort(a.Addr[:], a.Port)
	}
	return ""
}

// ReplyTo sends a message to an address, that of a [Sender] for example. The
// error is
//
//	EAGAIN                if the client's queue is full (net.unix.max_dgram_qlen)
//	ECONNREFUSED, ENOENT  if the client has ended
//	EACCES                if the mode of the client's socket denies access to this process
//	EMSGSIZE              if the message is larger than [SendLimit]
func ReplyTo(fd int, message []byte, to Sender) error {
	_, err := raw.SendTo(fd, message, string(to))
	return err
}

// ExplainSize turns EMSGSIZE into a [SizeError] with the limit of fd, and
// returns other errors unchanged.
func ExplainSize(fd, size int, err error) error {
	if err == unix.ENOBUFS {
		return fmt.Errorf("%w (ENOBUFS): %d bytes are more than the kernel puts into one message; send smaller ones", err, size)
	}
	if err != unix.EMSGSIZE {
		return err
	}
	limit, limitErr := SendLimit(fd)
	if limitErr != nil {
		return err
	}
	return &SizeError{size, limit, err}
}

func hostPort(ip []byte, port uint16) string {
	addr, _ := netip.AddrFromSlice(ip)
	swapped := port>>8 | port<<8 // the port is in network byte order
	return netip.AddrPortFrom(addr, swapped).String()
}
