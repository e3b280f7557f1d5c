//go:build linux

package sock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// A server hands all its sockets over to its successor at once. They talk over
// a control socket beside the lock of the first socket, DIR/.NAME.takeover, of
// type seqpacket, mode 0600. Each step is one record:
//
//	successor  connects
//	server     offer: the types, with the descriptors of the sockets, of their locks, and the control socket
//	successor  claim
//	server     yield, once it has stopped accepting and receiving; otherwise refuse
//	successor  commit, once it serves
//
// Until "commit" the server keeps everything, and it continues to serve if the
// connection ends. So a successor may die at any moment. From "yield" on the
// successor owns the sockets as long as it lives. If the server dies, the
// successor owns the sockets, even before its "claim". It knows because the
// connection ends and no "refuse" came. Only one successor has descriptors at a
// time. If two had them, one could read the old server's end as permission to
// serve, while the other serves already. Further successors wait to be
// accepted: the first one accepts them once it serves. The sockets are never
// closed, so no client is refused meanwhile: its connection waits to be
// accepted.
//
// The methods of [Handover] have the same verbs, and so has takeover.pml, a
// model of this protocol; `make model` checks it.
const (
	wordOffer  = "udsecho takeover 3" // followed by one word for each socket, its type
	wordClaim  = "claim"
	wordYield  = "yield"
	wordCommit = "commit"
	wordRefuse = "refuse"
)

// takeoverPatience is the longest time in which a server must send its offer.
const takeoverPatience = 5 * time.Second

// maxHandover is the largest number of sockets that can be handed over at
// once. A message carries at most 253 descriptors, unix(7), SCM_RIGHTS, and
// each socket takes two.
const maxHandover = (253 - 1) / 2

// errNoOffer means that no server hands the sockets over, or that it has
// ended.
var errNoOffer = errors.New("no server offers its sockets")

// A State is how far a handover is. All rules of the protocol are in
// [Handover.Step] and the methods that leave a state. A server only does what
// the state asks for, in a loop or in a goroutine. takeover.pml has the same
// states.
type State int

// The states, in their order. From Offering and Yielding back to Serving, the
// other server has ended or was refused, or sent an unexpected word.
const (
	Claiming State = iota // the sockets belong to another server: see [Handover.Claim], then wait
	Claimed               // that server has stopped: serve the sockets, then [Handover.Commit]
	Serving               // the sockets are this server's own, and another server may ask
	Offering              // another server has copies of the descriptors: continue to serve
	Yielding              // it claims them: stop accepting and receiving, then [Handover.Yield]
	Yielded               // it may serve them: do not, unless the next state is Serving again
	Released              // it serves them, and this process has no copy any more
)

// A Handover is a group of sockets that are handed over together: taken over
// from the running server, and later by the next one. It is not safe for
// several goroutines.
type Handover struct {
	Sockets []*Socket // in the order of the addresses

	config  ListenConfig
	state   State
	path    string // path of the control socket
	control *file
	fd      int // the control socket, which listens; -1 if there is none
	peer    int // the connection to the other server; -1 if there is none
}

// Handover listens on all addrs or, with an error, on none. If a server runs
// there and hands its sockets over, the handover is [Claiming]. Otherwise
// Handover makes them as [ListenConfig.Listen] does, and it is [Serving]. All
// addrs must be paths. The errors are those of Listen, or of ctx, which ends
// the wait for the running server.
func (c ListenConfig) Handover(ctx context.Context, addrs ...Addr) (*Handover, error) {
	if len(addrs) < 1 || len(addrs) > maxHandover {
		return nil, fmt.Errorf("take over %d sockets: choose from 1 to %d", len(addrs), maxHandover)
	}
	// All servers use the same order, whatever directory they start in. If two
	// start at once, the first lock decides which of them gets all sockets.
	ordered := slices.SortedFunc(slices.Values(addrs), func(a, b Addr) int { return strings.Compare(absolute(a.Path), absolute(b.Path)) })
	h := &Handover{config: c, state: Serving, path: beside(ordered[0].Path, ".takeover"), fd: -1, peer: -1}
	if err := h.listen(ctx, ordered); err != nil {
		if !h.Pending() {
			for _, s := range h.Sockets {
				_ = s.Close()
			}
		}
		h.Close()
		return nil, err
	}
	slices.SortFunc(h.Sockets, func(a, b *Socket) int { return slices.Index(addrs, a.addr) - slices.Index(addrs, b.addr) })
	return h, nil
}

func (h *Handover) listen(ctx context.Context, addrs []Addr) error {
	if err := CheckPath(h.path); err != nil {
		return fmt.Errorf("control socket for a takeover: %w", err)
	}
	switch err := h.ask(ctx, addrs); err {
	case nil:
		return nil
	case errNoOffer:
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
	RefuseRights(h.fd)
	h.control, err = bindFile(h.fd, h.path, 0o600, func() error {
		return os.NewSyscallError("listen", unix.Listen(h.fd, backlogOrMax(0)))
	})
	return err
}

// ask gets copies of the sockets from the running server. That server
// continues to serve, see [Handover.Claim].
func (h *Handover) ask(ctx context.Context, addrs []Addr) (err error) {
	if h.peer, err = socket(Seqpacket); err != nil {
		return err
	}
	err = raw.Again(func() error { return unix.Connect(h.peer, &unix.SockaddrUnix{Name: h.path}) })
	switch err {
	case nil:
	case unix.ENOENT, unix.ECONNREFUSED:
		closeFD(&h.peer)
		return errNoOffer
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
		closeFD(&h.peer)
		return errNoOffer
	default:
		return Explain(h.path, err)
	}
	cred, err := PeerCred(h.peer)
	if err != nil {
		return err
	}
	if !trusted(cred) {
		return fmt.Errorf("%s is served by user %d, and this process is user %d; let one user run both", h.path, cred.Uid, os.Geteuid())
	}
	types, fds, err := receiveOffer(ctx, h.peer)
	if errors.Is(err, io.EOF) {
		closeFD(&h.peer)
		return errNoOffer
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.path, err)
	}
	h.state = Claiming
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
	s.lock.name = absolute(beside(a.Path, ".lock"))
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
	tapped(path, &st)
	return newFile(path, &st), nil
}

// trusted reports whether sockets may be handed over: between processes of the
// same user, and to or from root, which can do anything anyway.
func trusted(cred *unix.Ucred) bool { return IsOwnUser(cred.Uid) || cred.Uid == 0 }

// receiveOffer receives n types and the descriptors: n sockets, n locks, the
// control socket. The error is io.EOF if the server has ended instead.
func receiveOffer(ctx context.Context, conn int) (handed []Type, _ []int, _ error) {
	patient, cancel := context.WithTimeout(ctx, takeoverPatience)
	defer cancel()
	switch err := Wait(patient, conn); {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return nil, nil, fmt.Errorf("the running server does not answer within %v; is it paused, or does it hand over to another?", takeoverPatience)
	case err != nil:
		return nil, nil, err
	}
	message := make([]byte, len(wordOffer)+maxHandover*(1+len(Seqpacket)))
	n, fds, _, err := ReceiveFiles(conn, message, 2*maxHandover+1)
	switch {
	case err == unix.ECONNRESET:
		return nil, nil, io.EOF
	case err != nil:
		return nil, nil, err
	}
	words, ok := strings.CutPrefix(string(message[:n]), wordOffer)
	for word := range strings.FieldsSeq(words) {
		handed = append(handed, Type(word))
		ok = ok && slices.Contains(types, Type(word))
	}
	switch {
	case string(message[:n]) == wordRefuse && len(fds) == 0:
		return nil, nil, errRefused
	case !ok || len(handed) == 0 || len(fds) != 2*len(handed)+1:
		CloseFiles(fds...)
		return nil, nil, fmt.Errorf("the running server sent %q; is it another version?", message[:n])
	}
	return handed, fds, nil
}

// errRefused is the error for a "refuse".
var errRefused = fmt.Errorf("%w: the running server has given its sockets to another server, or is ending", ErrInUse)

// State returns the state, as the last step has left it.
func (h *Handover) State() State { return h.state }

// FD returns the descriptor that is readable when there may be a step to take:
// the control socket while the handover is [Serving], otherwise the connection
// to the other server; -1 if there is none.
func (h *Handover) FD() int {
	if h.state == Serving {
		return h.fd
	}
	return h.peer
}

// Pending reports whether the sockets belong to the server from which they are
// taken over, or have just been this server's: before [Handover.Commit].
// Until then nothing is lost, and Close gives everything back.
func (h *Handover) Pending() bool { return h.state <= Claimed }

// Claim asks the running server to stop serving. The handover is [Claimed]
// when that server has answered.
func (h *Handover) Claim() { say(h.peer, wordClaim) }

// Step takes the step that the other server's last word asks for, if there is
// one, and returns the state. It does not wait.
//
// With an error the state is the one before, except after Yielded: then
// another server has ended that could have served, and this server could not
// restore the sockets. If the state is Claiming, no server hands them over; it
// is an [ErrInUse] if another server was faster. If the state is Serving, the
// error is the reason why the server that asks gets nothing, or an errno of
// accept4(2). After EMFILE for example, that server still waits to be
// accepted, so take the step again later.
func (h *Handover) Step() (State, error) {
	var err error
	switch h.state {
	case Claiming:
		err = h.claimed()
	case Serving:
		err = h.offer()
	case Offering, Yielding, Yielded:
		err = h.next()
	case Claimed, Released:
	}
	return h.state, err
}

// claimed makes the sockets this process's own: the other server has stopped
// serving them, or has ended.
func (h *Handover) claimed() error {
	switch word, err := hear(h.peer); {
	case err == unix.EAGAIN:
		return nil
	case err == io.EOF: // the server has ended without a refuse
	case err != nil:
		return fmt.Errorf("take over: %w", err)
	case word == wordRefuse:
		return fmt.Errorf("take over: %w", errRefused)
	case word != wordYield:
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
	h.state = Claimed
	return nil
}

// Orphaned reports whether the server from which the sockets are taken over
// has ended.
func (h *Handover) Orphaned() bool {
	return h.Pending() && HungUp(h.peer)
}

// Commit tells the other server to release the sockets, because this one
// serves them now. A server that is waiting to take them over now finds this
// one.
func (h *Handover) Commit() {
	for _, s := range h.Sockets {
		s.shared = false
	}
	say(h.peer, wordCommit)
	closeFD(&h.peer)
	h.state = Serving
}

// Replace puts a socket that [Socket.Renew] made in place of the old one.
func (h *Handover) Replace(old, renewed *Socket) {
	h.Sockets[slices.Index(h.Sockets, old)] = renewed
}

// Lost reports whether no server can ask for the sockets any more, because the
// control socket's file is not the one that this process made.
func (h *Handover) Lost() bool { return h.control == nil || !h.control.ours() }

// Renew recreates the control socket after its file is [Handover.Lost]. The
// caller still holds the lock of the first path. After an error there is no
// control socket, and Renew can be called again. A server that has copies of
// the descriptors is refused.
func (h *Handover) Renew() error {
	h.Refuse()
	closeFD(&h.fd)
	h.control = nil
	if err := h.listenControl(); err != nil {
		closeFD(&h.fd)
		return fmt.Errorf("listen again on %s: %w", h.path, err)
	}
	return nil
}

// offer accepts the next server that asks, and sends it copies of the
// descriptors.
func (h *Handover) offer() error {
	fd, err := raw.Retry(func() (int, error) { return raw.Accept(h.fd) })
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.sendOffer(fd); err != nil {
		_ = unix.Close(fd)
		return err
	}
	h.peer, h.state = fd, Offering
	return nil
}

func (h *Handover) sendOffer(fd int) error {
	cred, err := PeerCred(fd)
	if err != nil {
		return err
	}
	if !trusted(cred) {
		return fmt.Errorf("user %d asks for the sockets, and this process is user %d; let one user run both", cred.Uid, os.Geteuid())
	}
	words := wordOffer
	var sockets, locks []int
	for _, s := range h.Sockets {
		words += " " + string(s.addr.Type)
		sockets, locks = append(sockets, s.fd), append(locks, int(s.lock.file.Fd()))
	}
	rights := unix.UnixRights(slices.Concat(sockets, locks, []int{h.fd})...)
	return os.NewSyscallError("sendmsg", unix.Sendmsg(fd, []byte(words), rights, nil, unix.MSG_NOSIGNAL))
}

// next hears what the server that has the copies does.
func (h *Handover) next() error {
	word, err := hear(h.peer)
	switch {
	case err == unix.EAGAIN:
	case err == nil && word == wordClaim && h.state == Offering:
		h.state = Yielding
	case err == nil && word == wordCommit && h.state == Yielded:
		h.release()
	default: // it has ended, or does not know the protocol: the sockets stay here
		yielded := h.state == Yielded
		closeFD(&h.peer)
		h.state = Serving
		if yielded {
			return h.takeBack()
		}
	}
	return nil
}

// Yield tells the server that claims the sockets that this one no longer
// accepts or receives.
func (h *Handover) Yield() {
	say(h.peer, wordYield)
	h.state = Yielded
}

// Refuse keeps the sockets from a server to which they are not yielded.
func (h *Handover) Refuse() {
	if h.state == Offering || h.state == Yielding {
		say(h.peer, wordRefuse)
		closeFD(&h.peer)
		h.state = Serving
	}
}

// takeBack restores what the other server may have changed on the sockets that
// were yielded to it: their mode, their backlog, and the process that clients
// see as the server.
func (h *Handover) takeBack() error {
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

// release closes every copy of the sockets: the files belong to the other
// server.
func (h *Handover) release() {
	for _, s := range h.Sockets {
		s.shared = true
		_ = s.Close()
	}
	h.control = nil
	closeFD(&h.fd)
	closeFD(&h.peer) // last: if they are given back, the other server then continues
	h.state = Released
}

// Leave is the first thing that a server does that ends. Sockets that are
// Yielded belong to the other server unless that has ended: Leave releases
// them, and removes nothing. Otherwise no server gets them any more, and Leave
// removes the control socket's file. If the handover is not [Released] then,
// close the sockets and at last the handover: a server that still asks then
// finds the paths free.
func (h *Handover) Leave() {
	if h.state == Yielded {
		_, _ = h.Step()
	}
	if h.state == Yielded || h.Pending() {
		h.release()
	}
	h.Refuse()
	h.control.remove()
	h.control = nil
}

// Close ends the handover. If it is [Handover.Pending], that gives the sockets
// back; otherwise see [Handover.Leave].
func (h *Handover) Close() {
	h.Leave()
	closeFD(&h.fd)
	closeFD(&h.peer)
}

// say sends a word. Its error is ignored: a peer that has ended does not need
// the word.
func say(fd int, word string) { _ = unix.Send(fd, []byte(word), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }

// hear receives a word. The error is EAGAIN if there is none, and io.EOF at
// the end of the connection.
func hear(fd int) (string, error) {
	word := make([]byte, len(wordCommit)+1)
	n, _, _, err := ReceiveFiles(fd, word, 0)
	if err == unix.ECONNRESET { // the peer closed before it had read everything; its own words come after this error
		n, _, _, err = ReceiveFiles(fd, word, 0)
	}
	return string(word[:n]), err
}
