package server

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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

// errGone means that a replaced socket is closed, see [Server.retire].
var errGone = errors.New("the socket that it uses was removed and is closed")

// maxKeptFiles limits the descriptors in all queues of a socket.
const maxKeptFiles = 4 * sock.MaxRights

// A queue holds the replies that one client has not taken yet, oldest first.
type queue struct {
	replies []reply
	since   time.Time // time when the client last took one
	ready   func()    // called once there are none; nil: nobody wants to know
}

// A reply is a message to a client, with descriptors if a handler passes them on.
type reply struct {
	message []byte
	files   []int
	refusal bool // not counted if it cannot be sent
}

// reply sends a message to a client, or keeps it until the client takes it.
func (d *datagrams) reply(to client, r reply) {
	if d.socket.FD() < 0 { // a handler's answer comes late
		d.dropped(1, to, errGone)
		d.closeFiles(-1, r.files...)
		return
	}
	if len(d.queues) > 0 {
		if q := d.queues[to]; q != nil {
			d.wait(to, q, r)
			return
		}
	}
	if !d.buffer.admit(to.address, len(r.message)) {
		d.waitFirst(to, r)
		return
	}
	switch err := d.send(to, r); {
	case err == unix.EAGAIN:
		d.waitFirst(to, r)
		return
	case err != nil:
		d.dropped(1, to, sock.ExplainSize(d.socket.FD(), len(r.message), err))
	}
	d.closeFiles(-1, r.files...)
}

// send sends a message to a client, as [sock.SendFiles] does.
func (d *datagrams) send(c client, r reply) error {
	for again := true; ; again = false {
		to, err := d.server.look(c)
		if err == nil && c.address.IsPath() {
			err = d.server.names.dir.leave()
		}
		if err == nil {
			_, err = sock.SendFiles(d.socket.FD(), r.message, r.files, to)
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

// waitFirst is wait for a client that is not behind yet.
func (d *datagrams) waitFirst(c client, r reply) {
	q := &queue{since: time.Now()}
	d.queues[c.clone()] = q
	d.wait(c, q, r)
}

// wait keeps a reply for a client whose queue is full: net.unix.max_dgram_qlen,
// 10 messages by default.
func (d *datagrams) wait(c client, q *queue, r reply) {
	if len(q.replies) >= maxWaiting || d.bytes+len(r.message)+replyCost > d.maxBytes || d.kept+len(r.files) > maxKeptFiles {
		d.dropped(1, c, errors.New("it does not read its replies"))
		d.closeFiles(-1, r.files...)
		if len(q.replies) == 0 {
			d.end(c, q)
		}
		return
	}
	r.message = append([]byte(nil), r.message...)
	q.replies = append(q.replies, r)
	d.waiting++
	d.bytes += len(r.message) + replyCost
	d.kept += len(r.files)
	if d.waiting == 1 {
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
		switch {
		case err != nil:
			d.dropQueue(c, q, err)
		case len(q.replies) == 0:
			d.end(c, q)
		}
	}
	switch {
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

// dropQueue drops what a client has not taken.
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
	d.end(c, q)
	switch {
	case !own:
		logtext.WithPeer(d.server.Refuse(CauseNameless, n), c.address.String()).Uint32("uid", c.uid).Msg(logtext.Escape(err.Error()))
	case n > 0:
		d.dropped(n, c, err)
	}
}

// end forgets a client that is not behind any more.
func (d *datagrams) end(c client, q *queue) {
	delete(d.queues, c)
	if q.ready != nil {
		q.ready()
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
	d.kept -= len(r.files)
	d.closeFiles(-1, r.files...)
}

func (d *datagrams) dropped(n int, to client, err error) {
	total := d.server.Stats.Dropped.Add(uint64(n))
	d.server.warnDropped.Warn().Err(err).Str("peer", logtext.Escape(to.address.String())).Int("replies", n).Uint64("dropped", total).
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
