package echo

import (
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/uds"
)

// Replies that a datagram client does not take wait for it: so many, and so
// many bytes of all clients, and for so long.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 16 << 20
	maxWait         = 10 * time.Second
	minPause        = time.Millisecond
	replyCost       = 256 // what keeping a reply takes beside its bytes, about
	maxTries        = 64  // queues that are tried between two pauses
)

// datagrams is a socket that receives from everybody: there is no connection,
// and nothing to accept.
type datagrams struct {
	*server
	socket   *uds.Socket
	queues   map[uds.Sender]*queue // of clients that are behind, by address
	waiting  int                   // replies in all queues
	bytes    int
	tryAgain time.Time
	pause    time.Duration
	buffer   sendBuffer
	trusted  struct { // the last sender whose name was looked at
		sender uds.Sender
		uid    uint32
		until  time.Time
	}
	replaced bool // only who is connected to it finds it any more
}

// A queue is what one client has not taken yet, oldest first.
type queue struct {
	replies [][]byte
	since   time.Time // when the client last took one
}

func newDatagrams(s *server, socket *uds.Socket) (*datagrams, error) {
	d := &datagrams{server: s, socket: socket, queues: map[uds.Sender]*queue{}}
	if !socket.Addr.Type.Unix() {
		return d, nil
	}
	// A reply counts against the send buffer until its client has read it, so
	// that clients that do not read would stop the replies to all others.
	// The kernel doubles the number and keeps 32 bytes.
	_ = unix.SetsockoptInt(socket.FD, unix.SOL_SOCKET, unix.SO_SNDBUF, uds.MaxMessage()/2+16)
	limit, err := uds.SendLimit(socket.FD)
	d.buffer = sendBuffer{fd: socket.FD, size: limit, shares: map[uds.Sender]int{}, greedy: map[uds.Sender]bool{}}
	return d, err
}

func (d *datagrams) Ready(uint32) {
	for range maxTurn {
		if !d.receive() {
			return
		}
	}
}

// stop receives nothing more; replies may still wait.
func (d *datagrams) stop() { d.Remove(d.socket.FD) }

func (d *datagrams) receiveAll() {
	for d.receive() {
	}
}

// receive echoes one message and tells whether there may be more.
func (d *datagrams) receive() bool {
	unixSocket := d.socket.Addr.Type.Unix()
	receive := d.receiver.Receive
	if unixSocket {
		receive = d.receiver.ReceiveCred
	}
	message, err := receive(d.socket.FD)
	switch {
	case err == unix.EAGAIN:
		return false
	case errors.Is(err, uds.ErrTruncated):
		d.refuseMessage(CauseTruncated).Err(err).Msgf("refused a message: %v", err)
		return true
	case errors.Is(err, uds.ErrDescriptors):
		d.refuseMessage(CauseDescriptors).Err(err).Msgf("refused a message: %v", err)
		return true
	case err != nil:
		d.refuse(CauseSystem, 0).Err(err).Msgf("cannot receive: %v", err)
		return false
	}
	if unixSocket && d.Allow != nil && !d.allowed(d.cred()) {
		WithCred(d.refuseMessage(CauseUser), d.cred()).Msg("turned a client away: " + notAllowed(d.cred()))
		if d.receiver.Named() && d.buffer.admit(d.receiver, 1) {
			_ = d.receiver.Reply(d.socket.FD, refusal(len(message)))
		}
		return true
	}
	d.Stats.Messages.Add(1)
	d.Stats.Bytes.Add(uint64(len(message)))
	quiet := false
	if d.Log.GetLevel() <= zerolog.InfoLevel {
		quiet = d.log(message)
	}
	if !d.receiver.Named() {
		d.refuse(CauseNameless, 1).Int("bytes", len(message)).Msg("cannot answer a client without a name: it has to bind one")
		return true
	}
	if unixSocket && !d.isSendersOwn() {
		WithCred(d.refuseMessage(CauseNameless), d.cred()).Msg("cannot answer at a name that is no socket of the client's own")
		return true
	}
	if ev := d.about(quiet); ev != nil {
		ev.Int("bytes", len(message)).Msg("sending data back to the client")
	}
	if len(d.queues) > 0 {
		if q := d.queues[d.receiver.Sender()]; q != nil {
			d.wait(d.receiver.Sender(), q, message)
			return true
		}
	}
	if unixSocket && !d.buffer.admit(d.receiver, len(message)) {
		d.waitFirst(message)
		return true
	}
	switch err := d.receiver.Reply(d.socket.FD, message); {
	case err == unix.EAGAIN:
		d.waitFirst(message)
	case err != nil:
		d.drop(1, d.receiver.Sender().String(), uds.ExplainSize(d.socket.FD, len(message), err))
	}
	return true
}

// log says what was received and tells whether its sender is a health check.
func (d *datagrams) log(message []byte) (quiet bool) {
	who := d.cred()
	peer := d.receiver.Sender().String()
	quiet = isHealthCheck(peer, who)
	if ev := d.about(quiet); ev != nil {
		WithCred(ev.Str("peer", Escape(peer)), who).Int("bytes", len(message)).Msg("received " + Quote(message))
	}
	return quiet
}

// anyUser is the user that the kernel does not tell: -1, as chown(2) has it.
// overflowUser is whom it tells of instead.
const anyUser, overflowUser = ^uint32(0), 65534

// nameTrust is how long a name that was looked at is believed to be the same.
const nameTrust = time.Second

// isSendersOwn tells whether the name to which the reply would go is the sender's
// own socket. Names are looked up where the server is: so a client could bind one
// that means another socket here, and have the server write to that, or to
// itself without an end.
func (d *datagrams) isSendersOwn() bool {
	if d.receiver.Abstract() { // whose it is, the kernel knows
		return true
	}
	cred := d.cred()
	if cred == nil || d.socket.Shared() && cred.Pid == 0 && cred.Uid == overflowUser {
		// It came to a socket of the parent's before this process had that: the
		// kernel does not know who sent it.
		cred = &unix.Ucred{Uid: anyUser}
	}
	now := time.Now()
	if d.receiver.From(d.trusted.sender) && cred.Uid == d.trusted.uid && now.Before(d.trusted.until) {
		return true
	}
	sender := d.receiver.Sender()
	path := sender.String()
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil &&
		(st.Mode&unix.S_IFMT != unix.S_IFSOCK || cred.Uid != anyUser && st.Uid != cred.Uid || d.socket.Is(&st)) {
		return false // a name that leads nowhere gets no reply anyway
	}
	d.trusted.sender, d.trusted.uid, d.trusted.until = sender, cred.Uid, now.Add(nameTrust)
	return true
}

// cred is who sent the last message, nil where the kernel does not say.
func (d *datagrams) cred() *unix.Ucred {
	if cred, ok := d.receiver.Cred(); ok {
		return &cred
	}
	return nil
}

func (d *datagrams) refuseMessage(c Cause) *zerolog.Event {
	return d.refuse(c, 1).Str("peer", Escape(d.receiver.Sender().String()))
}

// waitFirst is wait for a client that is not behind yet.
func (d *datagrams) waitFirst(message []byte) {
	sender, q := d.receiver.Sender(), &queue{since: time.Now()}
	d.queues[sender] = q
	d.wait(sender, q, message)
}

// wait keeps a reply for a client whose queue is full: net.unix.max_dgram_qlen,
// 10 messages by default.
func (d *datagrams) wait(sender uds.Sender, q *queue, message []byte) {
	if len(q.replies) >= maxWaiting || d.bytes+len(message)+replyCost > maxWaitingBytes {
		d.drop(1, sender.String(), errors.New("it does not read its replies"))
		return
	}
	q.replies = append(q.replies, append([]byte(nil), message...))
	d.waiting++
	d.bytes += len(message) + replyCost
	if d.tryAgain.IsZero() {
		d.pause = minPause
		d.tryAgain = time.Now().Add(d.pause)
	}
}

// sendWaiting sends what clients now take. No event tells when a client has
// read, so it is tried at every turn of the loop, and ever more seldom while
// nothing goes.
func (d *datagrams) sendWaiting(now time.Time) {
	if d.waiting == 0 || d.pause > minPause && now.Before(d.tryAgain) {
		return
	}
	sent := 0
	if len(d.buffer.greedy) > 0 {
		d.buffer.look()
	}
	tries := 0
	for sender, q := range d.queues { // begins somewhere else each time
		if tries++; tries > maxTries && now.Before(d.tryAgain) {
			break
		}
		n, err := 0, error(nil)
		if !d.buffer.greedy[sender] {
			n, err = d.sendQueue(sender, q)
		}
		sent += n
		if n > 0 {
			q.since = now
		}
		if err == nil && len(q.replies) > 0 && now.Sub(q.since) > maxWait {
			err = fmt.Errorf("it has not read for %v", maxWait)
		}
		if err != nil {
			d.dropQueue(sender, q, err)
		}
		if len(q.replies) == 0 {
			delete(d.queues, sender)
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

func (d *datagrams) sendQueue(sender uds.Sender, q *queue) (sent int, err error) {
	for len(q.replies) > 0 {
		switch err := uds.ReplyTo(d.socket.FD, q.replies[0], sender); err {
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

func (d *datagrams) dropQueue(sender uds.Sender, q *queue, err error) {
	d.drop(len(q.replies), sender.String(), err)
	for _, r := range q.replies {
		d.forget(r)
	}
	q.replies = nil
}

func (d *datagrams) dropAll(err error) {
	for sender, q := range d.queues {
		d.dropQueue(sender, q, err)
	}
}

func (d *datagrams) forget(reply []byte) {
	d.waiting--
	d.bytes -= len(reply) + replyCost
}

func (d *datagrams) drop(n int, peer string, err error) {
	dropped := d.Stats.Dropped.Add(uint64(n))
	d.warnDropped.Warn().Err(err).Str("peer", Escape(peer)).Int("replies", n).Uint64("dropped", dropped).
		Msgf("dropped replies to a client: %v", err)
}

// A sendBuffer sees to it that no client takes the whole send buffer of the
// socket, which all replies share. A reply counts against it until the client
// has read it, and the kernel's limit of a queue, max_dgram_qlen, does not hold
// for a client that is connected to this socket. The kernel does not tell whose
// replies fill it. So from the moment at which half of it is taken, replies are
// counted by client, and who gets more than a sixteenth of it while it goes on
// growing gets nothing more until it is less than half full again.
type sendBuffer struct {
	fd, size int
	sent     int // since the last look
	taken    int // at the last look
	half     bool
	shares   map[uds.Sender]int
	greedy   map[uds.Sender]bool
}

// skbSize is about what the kernel counts for a message beyond its bytes.
const skbSize = 768

// admit tells whether a reply of n bytes to the last message may be sent.
func (b *sendBuffer) admit(r *uds.Receiver, n int) bool {
	n += skbSize
	if b.sent += n; b.sent > b.size/8 {
		b.look()
	}
	if !b.half {
		return true
	}
	sender := r.Sender()
	if b.shares[sender] += n; b.shares[sender] > b.size/16 {
		b.greedy[sender] = true
	}
	return !b.greedy[sender]
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
