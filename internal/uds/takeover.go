package uds

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A server hands its sockets to its successor over a control socket beside the
// lock, PATH.takeover, of type seqpacket, mode 0600. One record each:
//
//	successor  connects
//	server     hello and its form, with three descriptors: the socket, its lock, the control socket
//	successor  mine
//	server     done, once it has stopped accepting and receiving; or no
//
// Until "mine" nothing has changed for the server; a successor that dies before
// leaves it as it was. The socket itself is never closed, so that nobody who
// connects meanwhile is refused: the connection waits to be accepted.
const (
	takeoverHello = "udsecho takeover 1 " // and the form of the address
	takeoverMine  = "mine"
	takeoverDone  = "done"
	takeoverNo    = "no"
)

// takeoverPatience is how long a server may take to say hello.
const takeoverPatience = 5 * time.Second

func controlPath(path string) string { return path + ".takeover" }

// errNobodyOffers: there is no server that hands over, or it has ended.
var errNobodyOffers = errors.New("nobody offers")

func (s *Socket) listenControl() (err error) {
	path := controlPath(s.Addr.Path)
	if err := checkPath(path); err != nil {
		return fmt.Errorf("control socket for --takeover: %w", err)
	}
	if err := removeStale(path); err != nil {
		return err
	}
	if s.Control, err = socket(Seqpacket); err != nil {
		return err
	}
	if s.control, err = bindFile(s.Control, path, 0o600); err != nil {
		return err
	}
	return os.NewSyscallError("listen", unix.Listen(s.Control, backlogOrMax(0)))
}

// takeOver gets the socket from the server that runs. It changes nothing for
// that yet, see [Socket.Claim].
func (s *Socket) takeOver() (err error) {
	path := controlPath(s.Addr.Path)
	if err := checkPath(path); err != nil {
		return err
	}
	if s.claim, err = socket(Seqpacket); err != nil {
		return err
	}
	err = retryErr(func() error { return unix.Connect(s.claim, &unix.SockaddrUnix{Name: path}) })
	switch err {
	case nil:
	case unix.ENOENT, unix.ECONNREFUSED:
		closeFD(&s.claim)
		return errNobodyOffers
	default:
		return explain(path, err)
	}
	cred, err := PeerCred(s.claim)
	if err != nil {
		return err
	}
	if !trusted(cred) {
		return fmt.Errorf("%s is served by user %d, and this process is user %d: let one user run both", path, cred.Uid, os.Geteuid())
	}
	fds, err := receiveHello(s.claim, s.Addr.Type)
	if errors.Is(err, io.EOF) {
		closeFD(&s.claim)
		return errNobodyOffers
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	s.shared = true
	s.FD, s.lock, s.Control = fds[0], &lock{os.NewFile(uintptr(fds[1]), s.Addr.Path+".lock")}, fds[2]
	return s.verify()
}

// verify sees to it that what was handed over is what is at the path.
func (s *Socket) verify() error {
	if !s.lock.isAt(s.lock.Name()) {
		return fmt.Errorf("the running server holds another lock than %s: is it the same directory?", s.lock.Name())
	}
	if err := s.lock.try(); err != nil {
		return err
	}
	theirs := newSocket(Addr{})
	theirs.FD = s.FD
	if err := theirs.identify(); err != nil {
		return err
	}
	if theirs.Addr.Type.sotype() != s.Addr.Type.sotype() {
		return fmt.Errorf("the running server listens with %s: use the same type", theirs.Addr)
	}
	for _, f := range []struct {
		path string
		file **file
	}{{s.Addr.Path, &s.file}, {controlPath(s.Addr.Path), &s.control}} {
		var st unix.Stat_t
		if err := unix.Lstat(f.path, &st); err != nil {
			return explain(f.path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			return fmt.Errorf("%w: %s is a %s", ErrNotSocket, f.path, kind(st.Mode))
		}
		*f.file = &file{f.path, st.Dev, st.Ino}
	}
	return nil
}

// trusted tells whether sockets may change hands: between processes of one
// user, and with the one that can do anything anyway.
func trusted(cred *unix.Ucred) bool { return cred.Uid == uint32(os.Geteuid()) || cred.Uid == 0 }

func receiveHello(conn int, want Type) (fds []int, err error) {
	poll := []unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}}
	n, err := retry(func() (int, error) { return unix.Poll(poll, int(takeoverPatience.Milliseconds())) })
	if err != nil {
		return nil, os.NewSyscallError("poll", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("the running server does not answer within %v: is it paused?", takeoverPatience)
	}
	message := make([]byte, 64)
	n, fds, _, err = ReceiveFiles(conn, message, 3)
	switch {
	case err == unix.ECONNRESET:
		return nil, io.EOF
	case err != nil:
		return nil, err
	}
	form, ok := strings.CutPrefix(string(message[:n]), takeoverHello)
	switch {
	case !ok || len(fds) != 3:
		err = fmt.Errorf("the running server says %q: is it of another version?", message[:n])
	case form != string(want):
		err = fmt.Errorf("the running server listens with %q: use the same type", form)
	}
	if err != nil {
		CloseFiles(fds...)
		return nil, err
	}
	return fds, nil
}

// TakenOver tells whether the socket comes from a server that still runs.
func (s *Socket) TakenOver() bool { return s.claim >= 0 }

// Claim tells the server that the socket is taken over from to stop serving
// it. The descriptor that it returns is readable when that has stopped, or where
// the server is gone; then call Claimed.
func (s *Socket) Claim() (fd int) {
	_ = sendTo(s.claim, []byte(takeoverMine), nil, 0)
	return s.claim
}

// Claimed makes the socket this process's own, or fails where another server
// was faster. A server that was killed instead of answering serves no more
// either.
func (s *Socket) Claimed() error {
	if err := s.Refused(); err != nil {
		return err
	}
	if !s.file.ours() || !s.lock.isAt(s.lock.Name()) {
		return fmt.Errorf("take over %s: its file or its lock was removed meanwhile: start again", s.Addr)
	}
	closeFD(&s.claim)
	s.shared = false
	return s.config.adopt(s)
}

// Refused is an error where the running server has refused to hand the socket
// over.
func (s *Socket) Refused() error {
	r := NewReceiver(len(takeoverDone))
	message, err := r.Receive(s.claim)
	if err == unix.ECONNRESET { // it closed without having read "mine"; what it said comes after
		message, err = r.Receive(s.claim)
	}
	if err == nil && string(message) == takeoverNo {
		return fmt.Errorf("take over %s: %w: the running server has given it to another, or ends", s.Addr, ErrInUse)
	}
	return nil
}

// An Offer is a server that asks for a socket.
type Offer struct {
	FD     int // readable when there is an answer
	socket *Socket
}

// Offer accepts who asks for the socket at its Control and hands him copies of
// the descriptors. The error is EAGAIN where nobody asks, another errno of
// accept4(2), or says why there is nobody to hand over to.
func (s *Socket) Offer() (*Offer, error) {
	fd, err := retry(func() (int, error) {
		fd, _, err := unix.Accept4(s.Control, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return fd, err
	})
	if err != nil {
		return nil, err
	}
	o := &Offer{fd, s}
	cred, err := PeerCred(fd)
	if err == nil && !trusted(cred) {
		err = fmt.Errorf("user %d asks for %s, and this process is user %d: let one user run both", cred.Uid, s.Addr, os.Geteuid())
	}
	if err == nil {
		rights := unix.UnixRights(s.FD, int(s.lock.Fd()), s.Control)
		err = os.NewSyscallError("sendmsg", unix.Sendmsg(fd, []byte(takeoverHello+string(s.Addr.Type)), rights, nil, unix.MSG_NOSIGNAL))
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// Taken tells whether the other server has claimed the socket. The error is
// io.EOF where it went away, even after it had.
func (o *Offer) Taken() (bool, error) {
	r := NewReceiver(len(takeoverMine))
	message, err := r.Receive(o.FD)
	switch {
	case err == unix.EAGAIN:
		return false, nil
	case err != nil:
		return false, err
	case string(message) != takeoverMine:
		return false, io.EOF
	}
	if _, err := r.Receive(o.FD); err != unix.EAGAIN {
		return false, io.EOF
	}
	return true, nil
}

// Release gives the socket up: its files and its lock are the other's. The
// descriptor stays open, for the replies of a datagram server; nothing may be
// received from it any more.
func (o *Offer) Release() { o.socket.release() }

func (s *Socket) release() {
	s.lock.release()
	s.file, s.control, s.lock, s.shared = nil, nil, nil, true
	closeFD(&s.Control)
}

// Done tells the other server to serve.
func (o *Offer) Done() { o.say(takeoverDone) }

// Refuse tells the other server that it cannot have the socket.
func (o *Offer) Refuse() { o.say(takeoverNo) }

func (o *Offer) say(word string) {
	_ = sendTo(o.FD, []byte(word), nil, 0) // who is gone need not know
	o.Close()
}

// Close leaves the other server without an answer.
func (o *Offer) Close() { _ = unix.Close(o.FD) }
