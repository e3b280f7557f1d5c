package echo

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// What a connection may hold of the server's memory: a send buffer, and one
// chunk or record that the client does not take. [server.Pool] has the
// bounds for all connections together.
//
// As long as there is room, all of this costs nothing. If room is short,
// streams receive less at a time; and a record stays in the queue of its
// connection, where it counts for its sender, until there is room for it.

// maxSpare is how many buffers of formerly blocked connections are kept for
// reuse.
const maxSpare = 64

// takeBuffer gives a new connection its send buffer.
func (c *conn) takeBuffer() {
	c.buffer = int32(c.echo.srv.Memory.Buffer(c.UID))
	switch {
	case c.buffer > 0:
		_ = sock.SetSendBuffer(c.FD(), int(c.buffer))
	case c.echo.config.SendBuffer > 0 && c.Type().Unix():
		if err := sock.SetSendBuffer(c.FD(), c.echo.config.SendBuffer); err != nil {
			c.echo.srv.Refuse(server.CauseSystem, 0).Err(err).Msg(err.Error())
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
	pool := c.echo.srv.Memory
	size = min(size, pool.Full)
	if !pool.Grow(c.UID, int(c.buffer), size, rest) {
		return false
	}
	_ = sock.SetSendBuffer(c.FD(), size)
	if c.buffer = int32(size); size == pool.Full {
		c.buffer = 0
	}
	return true
}

// mostBytes returns how many bytes a stream may receive now.
func (c *conn) mostBytes() int {
	chunk := c.echo.config.Chunk
	if chunk > server.SmallKept && c.echo.srv.Memory.Short(c.UID, server.Kept(chunk)) {
		return server.SmallKept
	}
	return chunk
}

// makeRoom reports whether there is room for the next record: for its echo in
// the send buffer, and to keep it if the client does not take the echo now. If
// not, the connection waits for room.
func (c *conn) makeRoom() bool {
	pool := c.echo.srv.Memory
	if pool == nil || c.buffer == 0 && !pool.Short(c.UID, server.Kept(pool.Full)) {
		return true
	}
	size, err := sock.NextRecord(c.FD())
	if err != nil || size > pool.Full-sock.Overhead {
		return true // receiving reports the error; of a record that is too large in any case, sending does
	}
	grow := max(size+sock.Overhead-int(c.buffer), 0)
	if c.buffer == 0 {
		grow = 0
	}
	if need := pool.Cost(grow) + server.Kept(size); need > pool.Share() {
		c.turnAway(server.CauseTruncated, "a record of %d bytes needs %d bytes of memory; the memory limit leaves %d for one user", size, need, pool.Share())
		return false
	} else if pool.Short(c.UID, need) {
		c.park()
		return false
	}
	return grow == 0 || c.growTo(int(c.buffer)+grow, 0)
}

// waitsForRoom reports whether a blocked connection waits for room, and not
// for its client.
func (c *conn) waitsForRoom() bool { return c.blocked && c.rest == nil }

// roomPause is the time after which connections that wait for room try again.
const roomPause = 20 * time.Millisecond

// park lets a connection wait for room.
func (c *conn) park() {
	c.blocked = true
	c.Loop().Watch(c.FD(), 0)
	h := c.echo
	if h.parked = append(h.parked, c); len(h.parked) == 1 {
		c.Loop().After(roomPause, h.unpark)
	}
}

// unpark lets the connections that wait for room try again, and takes room back
// from those that do not use it.
func (h *Handler) unpark() {
	pool := h.srv.Memory
	for c := range h.conns {
		if c.blocked && !c.waitsForRoom() || int(c.buffer) == pool.Floor {
			continue
		}
		if unread, err := unix.IoctlGetInt(c.FD(), unix.SIOCOUTQ); err == nil && unread == 0 {
			pool.ReturnBuffer(c.UID, int(c.buffer))
			c.buffer = int32(pool.Floor)
			_ = sock.SetSendBuffer(c.FD(), pool.Floor)
		}
	}
	for _, c := range h.parked {
		c.blocked = false
		c.Loop().Watch(c.FD(), c.events)
	}
	h.parked = h.parked[:0]
}

// keep copies the rest, which the client does not take now. There is room for
// it, see mostBytes and makeRoom.
func (c *conn) keep() {
	h := c.echo
	h.srv.Memory.Keep(c.UID, server.Kept(len(c.rest)))
	c.kept = []byte{} // not nil for an empty record, see waitsForRoom
	if n := len(h.spare) - 1; n >= 0 {
		c.kept, h.spare = h.spare[n][:0], h.spare[:n]
	}
	c.kept = append(c.kept, c.rest...)
	c.rest = c.kept
}

// drop forgets what was kept.
func (c *conn) drop() {
	if c.kept == nil {
		return
	}
	h := c.echo
	h.srv.Memory.Keep(c.UID, -server.Kept(len(c.kept)))
	if len(h.spare) < maxSpare && !h.srv.Memory.Short(c.UID, maxSpare*server.Kept(cap(c.kept))) {
		h.spare = append(h.spare, c.kept)
	}
	c.kept = nil
}

// giveRoomBack is called when the connection ends.
func (c *conn) giveRoomBack() {
	h := c.echo
	if c.waitsForRoom() {
		h.parked = slices.DeleteFunc(h.parked, func(other *conn) bool { return other == c })
	}
	c.drop()
	h.srv.Memory.ReturnBuffer(c.UID, int(c.buffer))
}
