package server

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// Replies that a datagram client does not take wait for the client. These are
// the limits: replies of one client, bytes of all clients, and time.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 16 << 20
	maxWait         = 10 * time.Second
	minPause        = time.Millisecond
	replyCost       = 256 // about what a waiting reply costs beside its bytes
	maxTries        = 64  // queues to try between two pauses
)

// datagrams is a socket that receives from all clients: there is no
// connection, and nothing to accept.
type datagrams struct {
	server   *server
	socket   *addr.Socket
	inode    uint64            // of the socket; 0 for a UDP socket
	queues   map[client]*queue // of clients that are behind
	waiting  int               // replies in all queues
	bytes    int
	maxBytes int // in all queues
	files    int // in all queues
	tryAgain time.Time
	pause    time.Duration
	buffer   sendBuffer
	unmapped bool          // reply at paths even to clients whose user the kernel cannot map
	replaced bool          // only connected clients still find this socket
	retired  bool          // it is closed once its replies are sent
	used     time.Duration // the last sweep before it received something
	paused   bool          // the relay's target accepts nothing now, or stalled
	noRights bool          // no descriptor can come along
	stalled  bool          // see mayReceive
}

// A queue holds the replies that one client has not taken yet, oldest first.
type queue struct {
	replies []reply
	since   time.Time // time when the client last took one
}

// A reply is a message to a client, with descriptors if a relay passes them on.
type reply struct {
	message []byte
	files   []int
	refusal bool // not counted if it cannot be sent
}

// errGone means that a replaced socket is closed, see [server.retire].
var errGone = errors.New("the socket that it uses was removed and is closed")

// maxKeptFiles limits the descriptors in all queues of a socket.
const maxKeptFiles = 4 * sock.MaxRights

// datagramSockets returns how many sockets share the room for replies.
func (s *server) datagramSockets() (n int) {
	for _, socket := range s.sockets {
		if !socket.Addr.Type.Connects() {
			n++
		}
	}
	return n
}

func newDatagrams(s *server, socket *addr.Socket) (*datagrams, error) {
	d := &datagrams{server: s, socket: socket, queues: map[client]*queue{}, maxBytes: maxWaitingBytes, noRights: sock.RefusesRights(socket.FD())}
	buffer := sock.MaxMessage() + 32
	if pool := s.config.Memory; pool != nil {
		share := pool.Datagrams / max(s.datagramSockets(), 1)
		d.maxBytes = min(d.maxBytes, share)
		buffer = min(buffer, max(share, pool.Full))
	}
	if !socket.Addr.Type.Unix() {
		return d, nil
	}
	// A reply counts against the send buffer until its client has read it, so
	// clients that do not read would stop the replies to all others. The
	// kernel doubles the number and reserves 32 bytes.
	_ = unix.SetsockoptInt(socket.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, buffer/2)
	d.unmapped = s.config.Allow != nil && s.config.Allow(unix.Ucred{Uid: sock.OverflowUID(), Gid: anyUser})
	var st unix.Stat_t
	if err := unix.Fstat(socket.FD(), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	d.inode = st.Ino
	limit, err := sock.SendLimit(socket.FD())
	d.buffer = sendBuffer{fd: socket.FD(), size: limit, shares: map[sock.Sender]int{}, greedy: map[sock.Sender]bool{}}
	return d, err
}

func (d *datagrams) Ready(uint32) {
	for range maxTurn {
		if !d.receive() {
			return
		}
	}
}

// stop ends receiving; replies may still wait.
func (d *datagrams) stop() { d.server.loop.Remove(d.socket.FD()) }

// receiveAll receives all waiting messages. It needs a bound, because messages
// may still arrive: a UDP socket, unlike a socket that
// [addr.Socket.Refuse] has shut down, continues to receive. The bound is
// safe, because the receive buffer, SO_RCVBUF in socket(7), holds fewer
// messages: each takes far more than 256 bytes.
func (d *datagrams) receiveAll() {
	size, err := unix.GetsockoptInt(d.socket.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil || d.socket.Addr.Type.Unix() {
		size = math.MaxInt
	}
	for range size/256 + 1 {
		if !d.receive() {
			return
		}
	}
}

// receive echoes one message and reports whether there may be more.
func (d *datagrams) receive() bool {
	if d.paused || !d.mayReceive() {
		return false
	}
	unixSocket := d.socket.Addr.Type.Unix()
	receive := d.server.receiver.Receive
	switch {
	case unixSocket && d.server.config.RelayFiles:
		receive = d.server.receiver.ReceiveFiles
	case unixSocket:
		receive = d.server.receiver.ReceiveCred
	}
	message, err := receive(d.socket.FD())
	switch {
	case err == unix.EAGAIN:
		return false
	case errors.Is(err, sock.ErrTruncated):
		d.refuseMessage(CauseTruncated).Err(err).Msgf("dropped a message: %v", err)
		d.discard()
		return true
	case errors.Is(err, sock.ErrDescriptors), errors.Is(err, sock.ErrOpenFiles):
		d.refuseMessage(CauseDescriptors).Err(err).Msgf("dropped a message: %v", err)
		d.discard()
		return true
	case err != nil:
		d.server.refuse(CauseSystem, 0).Err(err).Msgf("cannot receive: %v", err)
		return false
	}
	d.used = d.server.swept
	more, relayed := d.serve(message, unixSocket)
	if d.server.config.RelayFiles && !relayed {
		d.discard()
	}
	return more
}

// serve answers one message, or hands it to the relay, and reports whether
// there may be more.
func (d *datagrams) serve(message []byte, unixSocket bool) (more, relayed bool) {
	to := d.sender()
	if unixSocket && d.server.config.Allow != nil && !d.server.allowed(d.cred()) {
		logtext.WithCred(d.refuseMessage(CauseUser), d.cred()).Msg("rejected a client: " + notAllowed(d.cred()))
		if d.server.receiver.Named() {
			d.sendRefusal(to, Refusal(len(message)))
		}
		return true, false
	}
	d.server.config.Stats.Messages.Add(1)
	d.server.config.Stats.Bytes.Add(uint64(len(message)))
	relay, quiet := d.server.config.Relay, false
	switch {
	case relay != nil: // it logs its clients, and never what they send
		if quiet = isHealthCheck(to.address.String(), d.cred()); quiet {
			relay = nil
		}
	case d.server.config.Log.GetLevel() <= zerolog.InfoLevel:
		quiet = d.log(message)
	}
	if named := d.server.receiver.Named(); !named && relay != nil {
		return relay.Message(d.relayed(to), message, d.takeFiles()), true
	} else if !named {
		d.server.refuse(CauseNameless, 1).Int("bytes", len(message)).Msg("cannot reply to a client without a name; it must bind one")
		return true, false
	}
	if err := d.mayAnswer(to); err == errNotOwn || err == errUnmapped {
		logtext.WithCred(d.refuseMessage(CauseNameless), d.cred()).Msg(err.Error())
		return true, false
	} // a search goes on, or after any other error the reply cannot be sent either
	if relay != nil {
		return relay.Message(d.relayed(to.clone()), message, d.takeFiles()), true
	}
	if ev := d.server.about(quiet); ev != nil {
		ev.Int("bytes", len(message)).Msg("sending data back to the client")
	}
	d.reply(to, reply{message: message})
	return true, false
}

// takeFiles returns the descriptors of the last message, if they are passed on.
func (d *datagrams) takeFiles() []int {
	if !d.server.config.RelayFiles {
		return nil
	}
	return d.server.receiver.Files()
}

// reply sends a message to a client, or keeps it until the client takes it.
func (d *datagrams) reply(to client, r reply) {
	if d.socket.FD() < 0 { // an answer to a relay's client comes late
		d.drop(1, to, errGone)
		d.closeFiles(-1, r.files...)
		return
	}
	if len(d.queues) > 0 {
		if q := d.queues[to]; q != nil {
			d.wait(to, q, r)
			return
		}
	}
	if d.socket.Addr.Type.Unix() && !d.buffer.admit(to.address, len(r.message)) {
		d.waitFirst(to, r)
		return
	}
	switch err := d.send(to, r); {
	case err == unix.EAGAIN:
		d.waitFirst(to, r)
		return
	case err != nil:
		d.drop(1, to, sock.ExplainSize(d.socket.FD(), len(r.message), err))
	}
	d.closeFiles(-1, r.files...)
}

// drain receives all waiting messages, and then stops. If the relay's target
// accepts nothing now, drain continues when it does.
func (d *datagrams) drain() {
	if d.receiveAll(); !d.paused {
		d.stop()
	}
}

// sender returns the client that sent the last message; it is valid until the
// next message.
func (d *datagrams) sender() client {
	c := client{address: d.server.receiver.Peek()}
	if !d.socket.Addr.Type.Unix() {
		return c
	}
	c.uid = anyUser
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
	if !d.socket.Addr.Type.Unix() {
		return nil
	}
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

// sendRefusal tells a client that it is not served. It keeps the refusal only
// while the owner of the client's socket is searched for, one for each client
// and in half of the room at most: the other half is for served clients.
func (d *datagrams) sendRefusal(to client, message []byte) {
	switch err := d.mayAnswer(to); {
	case err == nil && d.buffer.admit(to.address, 1):
		_ = d.send(to, reply{message: message})
	case err == unix.EAGAIN && d.queues[to] == nil && d.bytes < d.maxBytes/2:
		d.waitFirst(to, reply{message: message, refusal: true})
	case err == errNotOwn || err == errUnmapped:
		logtext.WithCred(d.refuseMessage(CauseNameless), d.cred()).Msg(err.Error())
	}
}

// send sends a message to a client, as [sock.ReplyTo] does.
func (d *datagrams) send(c client, r reply) error {
	if !d.socket.Addr.Type.Unix() {
		return sock.ReplyTo(d.socket.FD(), r.message, c.address)
	}
	for again := true; ; again = false {
		to, err := d.server.look(c)
		if err == nil && c.address.IsPath() {
			err = d.server.names.dir.leave()
		}
		if err == nil {
			err = sock.ReplyFiles(d.socket.FD(), r.message, r.files, to)
			if err == unix.ENOENT {
				err = fmt.Errorf("%w (ENOENT): replies to paths go by /proc/self/fd; mount /proc", err)
			}
		}
		if err != unix.ECONNREFUSED {
			return err
		}
		d.server.names.forget(c) // the client has closed that socket, and may have another one there
		if !again || !c.address.IsPath() {
			return err
		}
	}
}

// log logs the message and reports whether its sender is a health check.
func (d *datagrams) log(message []byte) (quiet bool) {
	who := d.cred()
	peer := d.server.receiver.Sender().String()
	quiet = isHealthCheck(peer, who)
	if ev := d.server.about(quiet); ev != nil {
		logtext.WithCred(ev.Str("peer", logtext.Escape(peer)), who).Int("bytes", len(message)).Msg("received " + logtext.Quote(message))
	}
	return quiet
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
	return d.server.refuse(c, 1).Str("peer", logtext.Escape(d.server.receiver.Sender().String()))
}

// waitFirst is wait for a client that is not behind yet.
func (d *datagrams) waitFirst(c client, r reply) {
	q := &queue{since: time.Now()}
	d.queues[c.clone()] = q
	d.wait(c, q, r)
}

// wait keeps a reply for a client whose queue is full: net.unix.max_dgram_qlen,
// 10 messages by default.
func (d *datagrams) wait(c client, q *queue, r reply) {
	if len(q.replies) >= maxWaiting || d.bytes+len(r.message)+replyCost > d.maxBytes || d.files+len(r.files) > maxKeptFiles {
		d.drop(1, c, errors.New("it does not read its replies"))
		d.closeFiles(-1, r.files...)
		return
	}
	r.message = append([]byte(nil), r.message...)
	q.replies = append(q.replies, r)
	d.waiting++
	d.bytes += len(r.message) + replyCost
	d.files += len(r.files)
	if d.tryAgain.IsZero() {
		d.pause = minPause
		d.tryAgain = time.Now().Add(d.pause)
	}
}

// sendWaiting sends the replies that clients now take. No event reports that a
// client has read, so the server tries at every turn of the loop, and less and
// less often while no client takes anything.
func (d *datagrams) sendWaiting(now time.Time) {
	if d.waiting == 0 || d.pause > minPause && now.Before(d.tryAgain) {
		return
	}
	sent := 0
	if len(d.buffer.greedy) > 0 {
		d.buffer.look()
	}
	tries := 0
	for c, q := range d.queues { // map order: begins with another client each time
		if tries++; tries > maxTries && now.Before(d.tryAgain) {
			break
		}
		n, err := 0, error(nil)
		if !d.buffer.greedy[c.address] {
			n, err = d.sendQueue(c, q)
		}
		sent += n
		if n > 0 {
			q.since = now
		}
		if err == nil && len(q.replies) > 0 && now.Sub(q.since) > maxWait {
			err = fmt.Errorf("it has not read for %v", maxWait)
			if d.server.names.asked[c] {
				err = fmt.Errorf("its socket could not be looked up for %v", maxWait)
			}
		}
		if err != nil {
			d.dropQueue(c, q, err)
		}
		if len(q.replies) == 0 {
			delete(d.queues, c)
		}
	}
	switch {
	case d.waiting == 0:
		d.tryAgain = time.Time{}
		return
	case sent > 0:
		d.pause = minPause
	case now.After(d.tryAgain):
		d.pause = min(2*d.pause, 100*time.Millisecond)
	default:
		return
	}
	d.tryAgain = now.Add(d.pause)
}

func (d *datagrams) sendQueue(c client, q *queue) (sent int, err error) {
	for len(q.replies) > 0 {
		switch err := d.send(c, q.replies[0]); err {
		case nil:
			d.forget(q.replies[0])
			q.replies = q.replies[1:]
			sent++
		case unix.EAGAIN:
			return sent, nil
		default:
			return sent, err
		}
	}
	return sent, nil
}

func (d *datagrams) dropQueue(c client, q *queue, err error) {
	own := !errors.Is(err, errNotOwn) && !errors.Is(err, errOwner)
	n := 0
	for _, r := range q.replies {
		if !r.refusal || !own {
			n++
		}
		d.forget(r)
	}
	q.replies = nil
	switch {
	case !own:
		d.server.refuse(CauseNameless, n).Str("peer", logtext.Escape(c.address.String())).Uint32("uid", c.uid).Msg(logtext.Escape(err.Error()))
	case n > 0:
		d.drop(n, c, err)
	}
}

func (d *datagrams) dropAll(err error) {
	for c, q := range d.queues {
		d.dropQueue(c, q, err)
	}
}

// forget ends the waiting of a reply that was sent or dropped.
func (d *datagrams) forget(r reply) {
	d.waiting--
	d.bytes -= len(r.message) + replyCost
	d.files -= len(r.files)
	d.closeFiles(-1, r.files...)
}

func (d *datagrams) drop(n int, to client, err error) {
	dropped := d.server.config.Stats.Dropped.Add(uint64(n))
	d.server.warnDropped.Warn().Err(err).Str("peer", logtext.Escape(to.address.String())).Int("replies", n).Uint64("dropped", dropped).
		Msgf("dropped replies to a client: %v", err)
}

// A sendBuffer prevents one client from using the whole send buffer of the
// socket, which all replies share. A reply counts against the buffer until the
// client has read it. The kernel's limit of a queue, max_dgram_qlen, does not
// apply to a client that is connected to this socket. The kernel does not
// report whose replies fill the buffer. So when half of it is used, the server
// begins to count replies by client. A client that gets more than a sixteenth
// of the buffer while its use still grows gets nothing more until it is less
// than half full again.
type sendBuffer struct {
	fd, size int
	sent     int // since the last check
	taken    int // at the last check
	half     bool
	shares   map[sock.Sender]int
	greedy   map[sock.Sender]bool
}

// skbSize is about what the kernel counts for a message in addition to its
// bytes.
const skbSize = 768

// admit reports whether a reply of n bytes may be sent to a client.
func (b *sendBuffer) admit(to sock.Sender, n int) bool {
	n += skbSize
	if b.sent += n; b.sent > b.size/8 {
		b.look()
	}
	if !b.half {
		return true
	}
	to = sock.Sender(strings.Clone(string(to)))
	if b.shares[to] += n; b.shares[to] > b.size/16 {
		b.greedy[to] = true
	}
	return !b.greedy[to]
}

func (b *sendBuffer) look() {
	taken, err := unix.IoctlGetInt(b.fd, unix.SIOCOUTQ)
	if err != nil {
		return
	}
	b.half = taken > b.size/2
	if !b.half {
		clear(b.greedy)
	}
	if !b.half || taken <= b.taken {
		clear(b.shares)
	}
	b.taken, b.sent = taken, 0
}

// Refusal returns the message that a datagram server sends to a client that it
// rejects. It is not the echo of the client's message of size bytes.
func Refusal(size int) []byte {
	if size > 0 {
		return []byte{}
	}
	return []byte{0}
}
