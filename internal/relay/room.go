package relay

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// What a link may hold of the relay's memory: the send buffers of both ends, and
// what it has received and one end does not accept, see package memory. As long
// as there is room for full buffers, none of this costs anything.

// limit returns how many bytes of a stream to receive at once: no more than the
// room of a small buffer has for what the relay keeps beside it.
func (e *end) limit() int {
	if o := e.other(); o.buffer > 0 {
		return min(o.buffer/2, len(e.link.relay.buf))
	}
	return len(e.link.relay.buf)
}

// makeRoom reports whether there is room for what is received next, in the other
// end's send buffer and to keep it if that is full. If not, it stays where it
// is, and counts for its sender, until there is room.
func (e *end) makeRoom() bool {
	r, o := e.link.relay, e.other()
	pool, user := r.config.Memory, e.link.user()
	if o.buffer == 0 || !e.records && (!r.config.PassFiles || !e.unix) {
		return true
	}
	size, grow := len(r.buf), 0
	if e.records {
		var err error
		if size, err = sock.NextRecord(e.fd); err != nil || size > pool.Full-sock.Overhead {
			return true // receiving reports the error; of a record that is too large in any case, sending does
		}
		grow = max(size+sock.Overhead-o.buffer, 0)
	}
	need := pool.Cost(grow) + server.Kept(size)
	switch {
	case need > pool.Share():
		e.link.refuse(fmt.Sprintf("a message of %d bytes needs %d bytes of memory; the memory limit leaves %d for one user", size, need, pool.Share()))
		return false
	case pool.Short(user, need):
		e.park()
		return false
	case grow > 0:
		pool.Grow(user, o.buffer, o.buffer+grow, 0)
		o.resize(o.buffer + grow)
	}
	return true
}

// resize sets the send buffer to size bytes, as the kernel counts them.
func (e *end) resize(size int) {
	e.buffer = size
	_ = sock.SetSendBuffer(e.fd, size)
}

// roomPause is the time after which parked ends try again.
const roomPause = 20 * time.Millisecond

// park lets an end wait for room: for what it would receive next, or because too
// many descriptors of its user are in flight to send its rest. No event reports
// either.
func (e *end) park() {
	if e.parked {
		return
	}
	r := e.link.relay
	e.parked = true
	if r.parked = append(r.parked, e); len(r.parked) == 1 {
		r.after(roomPause, r.unpark)
	}
}

// unpark lets the parked ends try again, after it has counted what has become
// free: descriptors that have arrived, and the room of empty send buffers.
func (r *Relay) unpark() {
	pool := r.config.Memory
	for l := range r.links {
		for _, e := range []*end{&l.client, &l.target} {
			e.landed()
			if pool == nil || e.fd < 0 || e.buffer == pool.Floor || e.other().waits {
				continue
			}
			if unsent, err := unix.IoctlGetInt(e.fd, unix.SIOCOUTQ); err == nil && unsent == 0 {
				pool.ReturnBuffer(l.user(), e.buffer)
				e.resize(pool.Floor)
			}
		}
	}
	parked := r.parked
	r.parked = nil
	for _, e := range parked {
		e.parked = false
		switch {
		case e.link.closed:
		case e.waits:
			e.flush()
		case !e.eof:
			e.receive()
		}
		e.link.settle()
	}
}

// keep counts a rest that waits beside a small buffer, until unkeep. There is
// room for it, see makeRoom.
func (e *end) keep() {
	if e.other().buffer > 0 && (e.records || e.link.relay.config.PassFiles) {
		e.kept = server.Kept(len(e.rest))
		e.link.relay.config.Memory.Keep(e.link.user(), e.kept)
	}
}

func (e *end) unkeep() {
	e.link.relay.config.Memory.Keep(e.link.user(), -e.kept)
	e.kept = 0
}
