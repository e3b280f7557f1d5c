package uds

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/why"
)

// A server hands all its sockets over to its successor at once. They talk over
// a control socket beside the lock of the first socket, DIR/.NAME.takeover, of
// type seqpacket, mode 0600. Each step is one record:
//
//	successor  connects
//	server     hello and the types, with the descriptors of the sockets, of their locks, and the control socket
//	successor  mine
//	server     yours, once it has stopped accepting and receiving; otherwise no
//	successor  serving
//
// Until "serving" the server keeps everything, and it continues to serve if
// the connection ends. So a successor may die at any moment. From "yours" on
// the successor owns the sockets as long as it lives. If the server dies, it
// leaves the sockets to the successor, even to one that has sent nothing yet:
// the connection ends without a "no". Only one successor has descriptors at a
// time. If two had them, one could read the old server's end as permission to
// serve, while the other serves already. Further successors wait to be
// accepted: the first one accepts them once it serves. The sockets are never
// closed, so no client is refused meanwhile: its connection waits to be
// accepted.
//
// takeover.pml is a model of this protocol; `make model` checks it.
const (
	takeoverHello   = "udsecho takeover 2" // followed by one word for each socket, its type
	takeoverMine    = "mine"
	takeoverYours   = "yours"
	takeoverServing = "serving"
	takeoverNo      = "no"
)

// takeoverPatience is the longest time in which a server must send hello.
const takeoverPatience = 5 * time.Second

// maxHandover is the largest number of sockets that can be handed over at
// once. A message carries at most 253 descriptors, unix(7), SCM_RIGHTS, and
// each socket takes two.
const maxHandover = (253 - 1) / 2

// errNobodyOffers means that no server hands the sockets over, or that it has
// ended.
var errNobodyOffers = errors.New("no server offers its sockets")

// A Handover is a group of sockets that are handed over together: taken over
// from the running server, and later by the next one.
type Handover struct {
	Sockets []*Socket // in the order of the addresses

	config  ListenConfig
	path    string // path of the control socket
	control *file
	fd      int // the control socket, which listens; -1 if there is none
	from    int // the connection to the server that has the sockets now; -1 if there is none
}

// Handover listens on all addrs or, with an error, on none. If a server runs
// there and hands its sockets over, Handover takes them over, see
// [Handover.Pending]. Otherwise it makes them as [ListenConfig.Listen] does.
// All addrs must be paths. The errors are those of Listen.
func (c ListenConfig) Handover(addrs ...Addr) (*Handover, error) {
	if len(addrs) < 1 || len(addrs) > maxHandover {
		return nil, fmt.Errorf("take over %d sockets: choose from 1 to %d", len(addrs), maxHandover)
	}
	// All servers use the same order, whatever directory they start in. If two
	// start at once, the first lock decides which of them gets all sockets.
	ordered := slices.SortedFunc(slices.Values(addrs), func(a, b Addr) int { return strings.Compare(absolute(a.Path), absolute(b.Path)) })
	h := &Handover{config: c, path: beside(ordered[0].Path, ".takeover"), fd: -1, from: -1}
	err := h.listen(ordered)
	if err == nil {
		slices.SortFunc(h.Sockets, func(a, b *Socket) int { return slices.Index(addrs, a.addr) - slices.Index(addrs, b.addr) })
	}
	if err != nil {
		if !h.Pending() {
			for _, s := range h.Sockets {
				_ = s.Close()
			}
		}
		h.Close()
		return nil, err
	}
	return h, nil
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func (h *Handover) listen(addrs []Addr) error {
	if err := checkPath(h.path); err != nil {
		return fmt.Errorf("control socket for a takeover: %w", err)
	}
	switch err := h.ask(addrs); err {
	case nil:
		return nil
	case errNobodyOffers:
	default:
		return fmt.Errorf("take over: %w", err)
	}
	for _, a := range addrs {
		s, err := h.config.Listen(a)
		if errors.Is(err, ErrInUse) {
			return fmt.Errorf("%w (no server hands it over: the running server was started without takeover or with other addresses, or is just starting or ending)", err)
		}
		if err != nil {
			return err
		}
		h.Sockets = append(h.Sockets, s)
	}
	// The control socket comes last: a successor that finds it gets all
	// sockets.
	return h.listenControl()
}

func (h *Handover) listenControl() (err error) {
	if err := removeStale(h.path); err != nil {
		return err
	}
	if h.fd, err = socket(Seqpacket); err != nil {
		return err
	}
	// A successor sends words only. Older kernels than Linux 6.16 do not know the
	// option; there the successor, which has the same user or is root, is trusted.
	_ = unix.SetsockoptInt(h.fd, unix.SOL_SOCKET, soPassRights, 0)
	h.control, err = bindFile(h.fd, h.path, 0o600, func() error {
		return os.NewSyscallError("listen", unix.Listen(h.fd, backlogOrMax(0)))
	})
	return err
}

// ask gets copies of the sockets from the running server. That server
// continues to serve, see [Handover.Claim].
func (h *Handover) ask(addrs []Addr) (err error) {
	if h.from, err = socket(Seqpacket); err != nil {
		return err
	}
	err = retryErr(func() error { return unix.Connect(h.from, &unix.SockaddrUnix{Name: h.path}) })
	switch err {
	case nil:
	case unix.ENOENT, unix.ECONNREFUSED:
		closeFD(&h.from)
		return errNobodyOffers
	case unix.EACCES:
		// Another user's server made it, and may have been killed: then its
		// sockets are stale, or gone. It makes the control socket after them.
		for _, a := range addrs {
			if _, served := stale(a.Path); served != nil {
				return Explain(h.path, err)
			}
		}
		if removed := unix.Unlink(h.path); removed != nil {
			return fmt.Errorf("remove the stale socket %s: %w", h.path, explainFile(h.path, removed))
		}
		closeFD(&h.from)
		return errNobodyOffers
	default:
		return Explain(h.path, err)
	}
	cred, err := peerCred(h.from)
	if err != nil {
		return err
	}
	if !trusted(cred) {
		return fmt.Errorf("%s is served by user %d, and this process is user %d; let one user run both", h.path, cred.Uid, os.Geteuid())
	}
	types, fds, err := receiveHello(h.from)
	if errors.Is(err, io.EOF) {
		closeFD(&h.from)
		return errNobodyOffers
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.path, err)
	}
	n := len(types)
	h.fd = fds[2*n]
	for i, t := range types {
		s := newSocket(Addr{Type: t})
		s.fd, s.config, s.shared = fds[i], h.config, true
		s.lock = &lock{file: os.NewFile(uintptr(fds[n+i]), "lock")}
		h.Sockets = append(h.Sockets, s)
	}
	return h.verify(addrs)
}

// verify checks that the sockets handed over are the ones at the paths.
func (h *Handover) verify(addrs []Addr) (err error) {
	if len(h.Sockets) != len(addrs) {
		return fmt.Errorf("the running server listens on %d sockets, not %d; use the same addresses", len(h.Sockets), len(addrs))
	}
	// Each is identified by its lock: the running server may use another path
	// for it.
	for i, a := range addrs {
		name := beside(a.Path, ".lock")
		at := slices.IndexFunc(h.Sockets[i:], func(s *Socket) bool { return s.lock.isAt(name) })
		if at < 0 {
			return fmt.Errorf("the running server holds another lock than %s; is it the same directory, and do both have the same addresses?", name)
		}
		h.Sockets[i], h.Sockets[i+at] = h.Sockets[i+at], h.Sockets[i]
		if err := h.Sockets[i].verify(a); err != nil {
			return err
		}
	}
	h.control, err = fileAt(h.path)
	return err
}

// verify makes s, which another server has handed over, the socket at a.
func (s *Socket) verify(a Addr) (err error) {
	if s.addr.Type != a.Type {
		return fmt.Errorf("the running server listens with %s:%s; use the same type", s.addr.Type, a.Path)
	}
	s.addr = a
	s.lock.name = beside(a.Path, ".lock")
	if err := s.lock.try(); err != nil {
		return err
	}
	theirs := newSocket(Addr{})
	theirs.fd = s.fd
	if err := theirs.identify(); err != nil {
		return err
	}
	if theirs.addr.Type != a.Type {
		return fmt.Errorf("the running server listens with %s; use the same type", theirs.addr)
	}
	s.file, err = fileAt(a.Path)
	return err
}

// fileAt returns the socket file at path, which another server made.
func fileAt(path string) (*file, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, Explain(path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%w: %s is a %s", ErrNotSocket, path, why.Kind(st.Mode))
	}
	return newFile(path, &st), nil
}

// trusted reports whether sockets may be handed over: between processes of the
// same user, and to or from root, which can do anything anyway.
func trusted(cred *unix.Ucred) bool { return IsOwnUser(cred.Uid) || cred.Uid == 0 }

// receiveHello receives n types and the descriptors: n sockets, n locks, the
// control socket. The error is io.EOF if the server has ended instead.
func receiveHello(conn int) (handed []Type, fds []int, err error) {
	poll := []unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}}
	n, err := retry(func() (int, error) { return unix.Poll(poll, int(takeoverPatience.Milliseconds())) })
	if err != nil {
		return nil, nil, os.NewSyscallError("poll", err)
	}
	if n == 0 {
		return nil, nil, fmt.Errorf("the running server does not answer within %v; is it paused, or does it hand over to another?", takeoverPatience)
	}
	message := make([]byte, len(takeoverHello)+maxHandover*(1+len(Seqpacket)))
	n, fds, _, err = ReceiveFiles(conn, message, 2*maxHandover+1)
	switch {
	case err == unix.ECONNRESET:
		return nil, nil, io.EOF
	case err != nil:
		return nil, nil, err
	}
	words, ok := strings.CutPrefix(string(message[:n]), takeoverHello)
	for word := range strings.FieldsSeq(words) {
		handed = append(handed, Type(word))
		ok = ok && slices.Contains(types, Type(word))
	}
	switch {
	case string(message[:n]) == takeoverNo && len(fds) == 0:
		return nil, nil, errGivenAway
	case !ok || len(handed) == 0 || len(fds) != 2*len(handed)+1:
		CloseFiles(fds...)
		return nil, nil, fmt.Errorf("the running server sent %q; is it another version?", message[:n])
	}
	return handed, fds, nil
}

// errGivenAway is the error for a "no".
var errGivenAway = fmt.Errorf("%w: the running server has given its sockets to another server, or is ending", ErrInUse)

// Pending reports whether the sockets still belong to the server from which
// they are taken over. If so, do not serve them before [Handover.Claimed].
func (h *Handover) Pending() bool { return h.from >= 0 }

// Claim asks the running server to stop serving. The descriptor that it
// returns is readable when that server has answered; then call
// [Handover.Claimed]. Until [Handover.Commit] nothing is lost: Close gives
// everything back.
func (h *Handover) Claim() (fd int) {
	say(h.from, takeoverMine)
	return h.from
}

// Claimed makes the sockets this process's own: the other server has stopped
// serving them, or has ended. Serve them all, then call [Handover.Commit]. The
// error is EAGAIN if there is no answer yet, and [ErrInUse] if another server
// was faster.
func (h *Handover) Claimed() error {
	switch word, err := hear(h.from); {
	case err == unix.EAGAIN:
		return err
	case err == io.EOF: // the server has ended without a no
	case err != nil:
		return fmt.Errorf("take over: %w", err)
	case word == takeoverNo:
		return fmt.Errorf("take over: %w", errGivenAway)
	case word != takeoverYours:
		return fmt.Errorf("take over: the running server sent %q; is it another version?", word)
	}
	for _, s := range h.Sockets {
		if !s.file.ours() || !s.lock.isAt(s.lock.name) {
			return fmt.Errorf("take over %s: its file or its lock was removed meanwhile; start again", s.addr)
		}
		if err := h.config.adopt(s); err != nil {
			return fmt.Errorf("take over %s: %w", s.addr, err)
		}
	}
	return nil
}

// Orphaned reports whether the server from which the sockets are taken over
// has ended.
func (h *Handover) Orphaned() bool {
	if !h.Pending() {
		return false
	}
	poll := []unix.PollFd{{Fd: int32(h.from)}}
	_, err := retry(func() (int, error) { return unix.Poll(poll, 0) })
	return err == nil && poll[0].Revents&unix.POLLHUP != 0
}

// Commit tells the other server to release the sockets, because this one
// serves them now. A server that is waiting to take them over now finds this
// one.
func (h *Handover) Commit() {
	for _, s := range h.Sockets {
		s.shared = false
	}
	say(h.from, takeoverServing)
	closeFD(&h.from)
}

// Control returns the descriptor that is readable when another server asks for
// the sockets, see [Handover.Offer]; -1 if there is none.
func (h *Handover) Control() int { return h.fd }

// Replace puts a socket that [Socket.Renew] made in place of the old one.
func (h *Handover) Replace(old, renewed *Socket) {
	h.Sockets[slices.Index(h.Sockets, old)] = renewed
}

// Lost reports whether no server can ask for the sockets any more, because the
// control socket's file is not the one that this process made.
func (h *Handover) Lost() bool { return h.control == nil || !h.control.ours() }

// Renew recreates the control socket after its file is [Handover.Lost]. The
// caller still holds the lock of the first path. After an error there is no
// control socket, and Renew can be called again.
func (h *Handover) Renew() error {
	closeFD(&h.fd)
	h.control = nil
	if err := h.listenControl(); err != nil {
		closeFD(&h.fd)
		return fmt.Errorf("listen again on %s: %w", h.path, err)
	}
	return nil
}

// An Offer is a connection from a server that asks for the sockets.
type Offer struct{ fd int }

// FD returns the descriptor of the connection, which is readable at the next
// step.
func (o *Offer) FD() int { return o.fd }

// Offer accepts the next server that asks, and sends it copies of the
// descriptors. The error is EAGAIN if no server asks, another errno of
// accept4(2), or the reason why that server gets nothing.
func (h *Handover) Offer() (*Offer, error) {
	fd, err := retry(func() (int, error) {
		fd, _, err := unix.Accept4(h.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return fd, err
	})
	if err != nil {
		return nil, err
	}
	o := &Offer{fd}
	if err := h.hello(fd); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

func (h *Handover) hello(fd int) error {
	cred, err := peerCred(fd)
	if err != nil {
		return err
	}
	if !trusted(cred) {
		return fmt.Errorf("user %d asks for the sockets, and this process is user %d; let one user run both", cred.Uid, os.Geteuid())
	}
	words := takeoverHello
	var sockets, locks []int
	for _, s := range h.Sockets {
		words += " " + string(s.addr.Type)
		sockets, locks = append(sockets, s.fd), append(locks, int(s.lock.file.Fd()))
	}
	rights := unix.UnixRights(slices.Concat(sockets, locks, []int{h.fd})...)
	return os.NewSyscallError("sendmsg", unix.Sendmsg(fd, []byte(words), rights, nil, unix.MSG_NOSIGNAL))
}

// A Step is a step of the server that asks for the sockets.
type Step int

// The steps, in their order. Gone may follow any of them.
const (
	Waits  Step = iota // it has sent nothing new
	Claims             // it asks this server to stop serving; then see [Offer.Yield]
	Serves             // it serves, and this server must release the sockets, see [Handover.Release]
	Gone               // it ended, or sent an unexpected word; the sockets stay with this server
)

// Next returns the next step of the other server.
func (o *Offer) Next() Step {
	switch word, err := hear(o.fd); {
	case err == unix.EAGAIN:
		return Waits
	case err == nil && word == takeoverMine:
		return Claims
	case err == nil && word == takeoverServing:
		return Serves
	default:
		return Gone
	}
}

// Yield tells the other server that this one no longer accepts or receives. If
// that server ends before it [Serves], see [Handover.TakeBack].
func (o *Offer) Yield() { say(o.fd, takeoverYours) }

// Refuse tells the other server that it cannot have the sockets.
func (o *Offer) Refuse() {
	say(o.fd, takeoverNo)
	o.Close()
}

// Close ends the connection to the other server.
func (o *Offer) Close() { closeFD(&o.fd) }

// TakeBack restores what the other server may have changed on the sockets that
// were yielded to it: their mode, their backlog, and the process that clients
// see as the server.
func (h *Handover) TakeBack() error {
	for _, s := range h.Sockets {
		err := h.config.prepare(s)
		if err == nil {
			err = h.config.start(s)
		}
		if err == nil && !s.Lost() {
			err = s.file.chmod(s.file.mode)
		}
		if err != nil {
			return fmt.Errorf("take back %s: %w", s.addr, err)
		}
	}
	return nil
}

// Release gives up everything: the files now belong to the other server.
func (h *Handover) Release() {
	for _, s := range h.Sockets {
		s.shared = true
		_ = s.Close()
	}
	h.control = nil
	closeFD(&h.fd)
}

// Remove removes the control socket's file, so that no further server can ask.
// While the sockets are [Handover.Pending], the file belongs to another
// server.
func (h *Handover) Remove() {
	if !h.Pending() {
		h.control.remove()
		h.control = nil
	}
}

// Close ends the handover. If the sockets are [Handover.Pending], it closes
// them and gives them back. Otherwise close the sockets first: a server that
// still asks then finds the paths free.
func (h *Handover) Close() {
	if h.Pending() {
		h.Release()
		closeFD(&h.from) // last: the other server then continues
		return
	}
	h.Remove()
	closeFD(&h.fd)
}

// say sends a word. Its error is ignored: a peer that has ended does not need
// the word.
func say(fd int, word string) { _ = unix.Send(fd, []byte(word), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }

// hear receives a word. The error is EAGAIN if there is none, and io.EOF at
// the end of the connection.
func hear(fd int) (string, error) {
	word := make([]byte, len(takeoverServing)+1)
	n, _, _, err := ReceiveFiles(fd, word, 0)
	if err == unix.ECONNRESET { // the peer closed before it had read everything; its own words come after this error
		n, _, _, err = ReceiveFiles(fd, word, 0)
	}
	return string(word[:n]), err
}
