package server

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// What a connection may hold of the server's memory: a send buffer, and one
// chunk or record that the client does not take. Package memory has the bounds
// for all connections together.
//
// As long as there is room, all of this costs nothing. If room is short,
// streams receive less at a time; and a record stays in the queue of its
// connection, where it counts for its sender, until there is room for it.

// maxSpare is how many buffers of formerly blocked connections are kept for
// reuse.
const maxSpare = 64

// takeBuffer gives a new connection its send buffer.
func (c *conn) takeBuffer(t addr.Type) {
	c.buffer = int32(c.server.config.Memory.Buffer(c.uid))
	switch {
	case c.buffer > 0:
		_ = sock.SetSendBuffer(c.fd, int(c.buffer))
	case c.server.config.SendBuffer > 0 && t.Unix():
		if err := sock.SetSendBuffer(c.fd, c.server.config.SendBuffer); err != nil {
			c.server.refuse(CauseSystem, 0).Err(err).Msg(err.Error())
		}
	}
}

// growBuffer reports whether a small send buffer, which is full, could grow.
func (c *conn) growBuffer() bool {
	if c.buffer == 0 {
		return false
	}
	return c.growTo(2*int(c.buffer), 7)
}

// growTo lets the send buffer grow to size, if that leaves rest times as much
// room for others.
func (c *conn) growTo(size, rest int) bool {
	pool := c.server.config.Memory
	size = min(size, pool.Full)
	if !pool.Grow(c.uid, int(c.buffer), size, rest) {
		return false
	}
	_ = sock.SetSendBuffer(c.fd, size)
	if c.buffer = int32(size); size == pool.Full {
		c.buffer = 0
	}
	return true
}

// mostBytes returns how many bytes a stream may receive now.
func (c *conn) mostBytes() int {
	chunk := c.server.config.Chunk
	if chunk > SmallKept && c.server.config.Memory.Short(c.uid, Kept(chunk)) {
		return SmallKept
	}
	return chunk
}

// makeRoom reports whether there is room for the next record: for its echo in
// the send buffer, and to keep it if the client does not take the echo now. If
// not, the connection waits for room.
func (c *conn) makeRoom() bool {
	pool := c.server.config.Memory
	if pool == nil || c.buffer == 0 && !pool.Short(c.uid, Kept(pool.Full)) {
		return true
	}
	size, err := sock.NextRecord(c.fd)
	if err != nil || size > pool.Full-sock.Overhead {
		return true // receiving reports the error; of a record that is too large in any case, sending does
	}
	grow := max(size+sock.Overhead-int(c.buffer), 0)
	if c.buffer == 0 {
		grow = 0
	}
	if need := pool.Cost(grow) + Kept(size); need > pool.Share() {
		c.turnAway(CauseTruncated, "a record of %d bytes needs %d bytes of memory; the memory limit leaves %d for one user", size, need, pool.Share())
		return false
	} else if pool.Short(c.uid, need) {
		c.blocked = true
		c.server.parked = append(c.server.parked, c)
		c.server.loop.Watch(c.fd, 0)
		return false
	}
	return grow == 0 || c.growTo(int(c.buffer)+grow, 0)
}

// waitsForRoom reports whether a blocked connection waits for room, and not
// for its client.
func (c *conn) waitsForRoom() bool { return c.blocked && c.rest == nil }

// roomPause is the time after which connections that wait for room try again.
const roomPause = 20 * time.Millisecond

// unpark lets the connections that wait for room try again, and takes room back
// from those that do not use it.
func (s *server) unpark(now time.Time) {
	if len(s.parked) == 0 || now.Before(s.unparked.Add(roomPause)) {
		return
	}
	s.unparked = now
	pool := s.config.Memory
	for h := range s.loop.Handlers {
		c, ok := h.(*conn)
		if !ok || c.blocked && !c.waitsForRoom() || int(c.buffer) == pool.Floor {
			continue
		}
		if unread, err := unix.IoctlGetInt(c.fd, unix.SIOCOUTQ); err == nil && unread == 0 {
			pool.ReturnBuffer(c.uid, int(c.buffer))
			c.buffer = int32(pool.Floor)
			_ = sock.SetSendBuffer(c.fd, pool.Floor)
		}
	}
	for _, c := range s.parked {
		c.blocked = false
		s.loop.Watch(c.fd, c.events)
	}
	s.parked = s.parked[:0]
}

// keep copies the rest, which the client does not take now. There is room for
// it, see mostBytes and makeRoom.
func (c *conn) keep() {
	s := c.server
	s.config.Memory.Keep(c.uid, Kept(len(c.rest)))
	c.kept = []byte{} // not nil for an empty record, see waitsForRoom
	if n := len(s.spare) - 1; n >= 0 {
		c.kept, s.spare = s.spare[n][:0], s.spare[:n]
	}
	c.kept = append(c.kept, c.rest...)
	c.rest = c.kept
}

// drop forgets what was kept.
func (c *conn) drop() {
	if c.kept == nil {
		return
	}
	s := c.server
	s.config.Memory.Keep(c.uid, -Kept(len(c.kept)))
	if len(s.spare) < maxSpare && !s.config.Memory.Short(c.uid, maxSpare*Kept(cap(c.kept))) {
		s.spare = append(s.spare, c.kept)
	}
	c.kept = nil
}

// giveRoomBack is called when the connection ends.
func (c *conn) giveRoomBack() {
	s := c.server
	if c.waitsForRoom() {
		s.parked = slices.DeleteFunc(s.parked, func(other *conn) bool { return other == c })
	}
	c.drop()
	s.config.Memory.ReturnBuffer(c.uid, int(c.buffer))
}
