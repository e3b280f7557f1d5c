package relay

import (
	"cmp"
	"fmt"
	"time"

	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// What a link may hold of the relay's memory: the send buffers of both ends, and
// what it has received and one end does not accept, see [server.Pool]. As long
// as there is room for full buffers, none of this costs anything.

// limit returns how many bytes of a stream to receive at once: no more than the
// room of a small buffer has for what the relay keeps beside it.
func (d *direction) limit() int {
	full := len(d.link.relay.buf)
	return min(cmp.Or(d.to.buffer/2, full), full)
}

// makeRoom reports whether there is room for what is received next, in the
// receiver's send buffer and to keep it if that is full. If not, it stays where
// it is, and counts for its sender, until there is room.
func (d *direction) makeRoom() bool {
	l, to := d.link, d.to
	pool := l.relay.srv.Memory
	if to.buffer == 0 || !l.records && (!l.relay.config.PassFiles || !d.from.unix) {
		return true
	}
	size, grow := len(l.relay.buf), 0
	if l.records {
		var err error
		if size, err = sock.NextRecord(d.from.fd); err != nil || size > pool.Full-sock.Overhead {
			return true // receiving reports the error; of a record that is too large in any case, sending does
		}
		grow = max(size+sock.Overhead-to.buffer, 0)
	}
	need := pool.Cost(grow) + server.Kept(size)
	switch {
	case need > pool.Share():
		l.refuse(fmt.Sprintf("a message of %d bytes needs %d bytes of memory; the memory limit leaves %d for one user", size, need, pool.Share()))
		return false
	case pool.Short(l.conn.UID, need):
		d.park(starved)
		return false
	case grow > 0:
		pool.Grow(l.conn.UID, to.buffer, to.buffer+grow, 0)
		to.resize(to.buffer + grow)
	}
	return true
}

// roomPause is the time after which parked directions try again.
const roomPause = 20 * time.Millisecond

// park lets a direction wait for room, starved or crowded. No event reports
// either.
func (d *direction) park(s state) {
	d.state = s
	r := d.link.relay
	if r.parked = append(r.parked, d); len(r.parked) == 1 {
		r.srv.Loop.After(roomPause, r.unpark)
	}
}

// unpark lets the parked directions try again, after it has counted what has
// become free: descriptors that have arrived, and the room of empty send
// buffers.
func (r *Relay) unpark() {
	pool := r.srv.Memory
	for l := range r.links {
		for _, e := range l.ends() {
			e.in.landed()
			if pool != nil && e.fd >= 0 && e.buffer != pool.Floor && !e.in.pending() && e.queued() == 0 {
				pool.ReturnBuffer(l.conn.UID, e.buffer)
				e.resize(pool.Floor)
			}
		}
	}
	parked := r.parked
	r.parked = nil
	for _, d := range parked {
		switch d.state {
		case starved:
			d.state = flowing
			d.receive()
		case crowded:
			d.flush()
		}
		d.link.settle()
	}
}
