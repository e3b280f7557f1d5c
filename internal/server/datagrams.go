package server

import (
	"errors"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// datagrams is a socket that receives from all clients: there is no
// connection, and nothing to accept.
type datagrams struct {
	server   *Server
	socket   *addr.Socket
	handler  Handler
	files    bool              // the handler gets descriptors that come along
	inode    uint64            // of the socket
	queues   map[client]*queue // of clients that are behind
	waiting  int               // replies in all queues
	bytes    int
	maxBytes int       // in all queues
	kept     int       // descriptors in all queues
	tryAgain time.Time // while replies wait
	pause    time.Duration
	buffer   sendBuffer
	unmapped bool          // reply at paths even to clients whose user the kernel cannot map
	replaced bool          // only connected clients still find this socket
	retired  bool          // it is closed once its replies are sent
	used     time.Duration // the last sweep before it received something
	paused   bool          // the handler accepts nothing now, or stalled
	noRights bool          // no descriptor can come along
	stalled  bool          // see mayReceive
}

func newDatagrams(s *Server, of Service) (*datagrams, error) {
	socket := of.Socket
	d := &datagrams{server: s, socket: socket, handler: of.Handler, files: of.Files, queues: map[client]*queue{}, maxBytes: maxWaitingBytes, noRights: sock.RefusesRights(socket.FD())}
	buffer := sock.MaxMessage() + 32
	if pool := s.Memory; pool != nil {
		share := pool.Datagrams / s.datagramSockets
		d.maxBytes = min(d.maxBytes, share)
		buffer = min(buffer, max(share, pool.Full))
	}
	// A reply counts against the send buffer until its client has read it, so
	// clients that do not read would stop the replies to all others. The
	// kernel doubles the number and reserves 32 bytes.
	_ = unix.SetsockoptInt(socket.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, buffer/2)
	d.unmapped = s.Allow != nil && s.Allow(unix.Ucred{Uid: sock.OverflowUID(), Gid: anyUser})
	var st unix.Stat_t
	if err := unix.Fstat(socket.FD(), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	d.inode = st.Ino
	limit, err := sock.SendLimit(socket.FD())
	d.buffer = sendBuffer{fd: socket.FD(), size: limit, shares: map[sock.Sender]int{}, greedy: map[sock.Sender]bool{}}
	return d, err
}

// maxTurn is how many messages a socket receives before the others get their
// turn.
const maxTurn = 16

func (d *datagrams) Ready(uint32) {
	for range maxTurn {
		if !d.receive() {
			return
		}
	}
}

// stop ends receiving; replies may still wait.
func (d *datagrams) stop() { d.server.Loop.Remove(d.socket.FD()) }

// receiveAll receives all waiting messages of a socket that was shut down, so
// that no more can arrive.
func (d *datagrams) receiveAll() {
	for d.receive() {
	}
}

// receive receives one message and reports whether there may be more.
func (d *datagrams) receive() bool {
	if d.paused || !d.mayReceive() {
		return false
	}
	receive := d.server.receiver.ReceiveCred
	if d.files {
		receive = d.server.receiver.ReceiveFiles
	}
	message, err := receive(d.socket.FD())
	switch {
	case err == unix.EAGAIN:
		return false
	case errors.Is(err, sock.ErrTruncated):
		d.drop(CauseTruncated, err)
	case errors.Is(err, sock.ErrDescriptors), errors.Is(err, sock.ErrOpenFiles):
		d.drop(CauseDescriptors, err)
	case err != nil:
		d.server.Refuse(CauseSystem, 0).Err(err).Msgf("cannot receive: %v", err)
		return false
	default:
		d.used = d.server.swept
		m := Message{Sender: Sender{d, d.sender(), zerolog.InfoLevel}, Bytes: message}
		if d.server.logs() && isHealthCheck(m.Address(), m.Cred()) {
			m.level = zerolog.DebugLevel
		}
		if !d.admits(&m) {
			d.discard()
			return true
		}
		if d.files {
			m.Files = d.server.receiver.Files()
		}
		return d.handler.Receive(m)
	}
	return true
}

// drop drops the last message, which cannot be handled.
func (d *datagrams) drop(why Cause, err error) {
	d.refuseMessage(why).Err(err).Msgf("dropped a message: %v", err)
	d.discard()
}

// admits reports whether the handler gets a message: its sender is allowed, and
// an answer can reach no socket of another user. It tells the client if it is
// not allowed.
func (d *datagrams) admits(m *Message) bool {
	if d.server.Allow != nil && !d.server.allowed(m.Cred()) {
		logtext.WithCred(d.refuseMessage(CauseUser), m.Cred()).Msg("rejected a client: " + notAllowed(m.Cred()))
		if d.server.receiver.Named() {
			d.sendRefusal(m.client, Refusal(len(m.Bytes)))
		}
		return false
	}
	d.server.Stats.Messages.Add(1)
	d.server.Stats.Bytes.Add(uint64(len(m.Bytes)))
	if !d.server.receiver.Named() {
		return true
	}
	if err := d.mayAnswer(m.client); err == errNotOwn || err == errUnmapped {
		logtext.WithCred(d.refuseMessage(CauseNameless), m.Cred()).Msg(err.Error())
		return false
	} // a search goes on, or after any other error the reply cannot be sent either
	return true
}

// discard closes the descriptors that came with the last message.
func (d *datagrams) discard() {
	uid := int64(-1)
	if cred, ok := d.server.receiver.Cred(); ok {
		uid = int64(cred.Uid)
	}
	d.closeFiles(uid, d.server.receiver.Files()...)
}

func (d *datagrams) halt() {
	d.paused = true
	d.server.Loop.Watch(d.socket.FD(), 0)
}

func (d *datagrams) resume() {
	if !d.paused {
		return
	}
	d.paused = false
	d.server.Loop.Watch(d.socket.FD(), unix.EPOLLIN)
	if d.server.stopping() || d.retired {
		d.drain()
	}
}

// close closes the socket, and what is left in its queue not on the loop.
func (d *datagrams) close() {
	if !d.noRights {
		if last, err := unix.FcntlInt(uintptr(d.socket.FD()), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			defer d.server.closers.Close(-1, nil, last)
		}
	}
	_ = d.socket.Close()
}

// drain receives all waiting messages, and then stops. If the handler accepts
// nothing now, drain continues when it does.
func (d *datagrams) drain() {
	if d.receiveAll(); !d.paused {
		d.stop()
	}
}

// sender returns the client that sent the last message; it is valid until the
// next message.
func (d *datagrams) sender() client {
	c := client{address: d.server.receiver.Peek(), uid: anyUser}
	if cred, ok := d.server.receiver.Cred(); ok {
		c.uid = cred.Uid
		if !d.server.receiver.Named() {
			c.address, c.pid = "", cred.Pid
		}
	}
	return c
}

// anyUser is the user id that no user has: -1, as in chown(2).
const anyUser = ^uint32(0)

// mayAnswer returns errNotOwn or errUnmapped if a reply could reach a socket
// of another user, EAGAIN if that is not known yet, and another error if there
// is no socket to reach.
func (d *datagrams) mayAnswer(c client) error {
	if c.uid == sock.OverflowUID() && !d.unmapped {
		// Messages that arrived while the parent process still held the socket
		// also have no credentials.
		cred, _ := d.server.receiver.Cred()
		if sock.Unmapped(c.uid) || d.socket.Shared() && cred.Pid == 0 {
			return errUnmapped
		}
	}
	_, err := d.server.look(c)
	return err
}

// cred returns the credentials of the last message's sender, nil if the kernel
// has none.
func (d *datagrams) cred() *unix.Ucred {
	if cred, ok := d.server.receiver.Cred(); ok {
		return &cred
	}
	return nil
}

func (d *datagrams) refuseMessage(c Cause) *zerolog.Event {
	return logtext.WithPeer(d.server.Refuse(c, 1), d.server.receiver.Sender().String())
}

// Refusal returns the message that a datagram server sends to a client that it
// rejects. It is not the echo of the client's message of size bytes.
func Refusal(size int) []byte {
	if size > 0 {
		return []byte{}
	}
	return []byte{0}
}
