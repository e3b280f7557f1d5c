package server

import (
	"fmt"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// MemoryLimit returns how many bytes of memory this process may use, and what says
// so: the limit of its cgroup, memory.max of cgroups(7) or that of version 1,
// or the machine's memory, whichever is less. Without an answer it returns 0.
func MemoryLimit() (bytes int, source string) {
	limit := uint64(math.MaxInt)
	if n, err := memlimit.FromSystem(); err == nil {
		limit, source = min(n, limit), "machine"
	}
	if n, err := memlimit.FromCgroup(); err == nil && n < limit {
		limit, source = n, "cgroup"
	}
	if source == "" {
		return 0, "unknown"
	}
	return int(limit), source
}

// A Pool bounds what the clients of a server can make it hold, all together: the
// send buffers of the kernel, which count for the sender's memory cgroup until
// the other end has read them, and what the process keeps.
//
// It shares memory among connections. Each connection is sure of a small
// send buffer. As long as there is room, connections also get the buffers that
// the system gives by default; then less and less.
//
// A Pool belongs to one goroutine. A nil Pool has no bounds.
type Pool struct {
	Most      int // connections at the same time
	Floor     int // the send buffer that each end of a connection is sure of, in bytes
	Full      int // the send buffer that it has if there is room
	Size      int // bytes to share beside that
	Datagrams int // bytes for the replies to datagram clients: in the kernel, and waiting, each

	free  int
	users map[int64]int // taken by each user
}

// The send buffer counts bytes as the kernel does, SO_SNDBUF in socket(7).
const (
	// minFloor is the kernel's own lower limit; maxFloor takes ten small
	// messages, 768 bytes each.
	minFloor, maxFloor = 4608, 8 << 10
	// perConnection is about what a connection costs beside its buffers: file,
	// inode and epoll entry in the kernel, the process's own record of it.
	perConnection = 3 << 10
	// A full buffer takes one more message, which may be as large as the
	// buffer.
	overshoot = 2
)

// NewPool shares five eighths of limit, in bytes, among at most most
// connections, each with a number of ends that have a send buffer. The rest is
// for the program itself. full is the send buffer that the system, or a flag,
// gives. If limit is 0, the pool is nil.
func NewPool(limit, most, ends, full int) *Pool {
	if limit == 0 {
		return nil
	}
	budget := limit / 8 * 5
	p := &Pool{Full: full, Datagrams: budget / 8, users: map[int64]int{}}
	budget -= 2 * p.Datagrams
	// Connections may take three quarters for what they are sure of.
	each := budget / 4 * 3 / max(most, 1)
	p.Floor = min(max((each-perConnection)/ends/overshoot, minFloor), maxFloor, full)
	each = perConnection + ends*overshoot*p.Floor
	p.Most = min(most, max(budget/each, 1))
	p.Size = budget - p.Most*each
	p.free = p.Size
	return p
}

// String describes the pool for people.
func (p *Pool) String() string {
	if p == nil {
		return "no bounds"
	}
	return fmt.Sprintf("%d connections, each with a send buffer of %d bytes at least and %d if there is room, and %d bytes to share", p.Most, p.Floor, p.Full, p.Size)
}

// Buffer returns the send buffer for one end of a new connection, in bytes as
// the kernel counts them, or 0 for a full one, which needs no system call. Give
// it back with [Pool.ReturnBuffer].
//
// A connection gets at most an eighth of what is free, so that something is
// left for the next.
func (p *Pool) Buffer(user int64) int {
	if p == nil {
		return 0
	}
	size := min(p.Full, p.Floor+p.freeFor(user)/8/overshoot)
	p.take(user, p.Cost(size-p.Floor))
	if size < p.Full {
		return size
	}
	return 0
}

// ReturnBuffer takes back what Buffer has returned to this user.
func (p *Pool) ReturnBuffer(user int64, size int) {
	if p == nil {
		return
	}
	if size == 0 {
		size = p.Full
	}
	p.take(user, -p.Cost(size-p.Floor))
}

// Grow reports whether a send buffer that [Pool.Buffer] has returned may grow
// to another size, and counts it. Beside, it leaves rest times as much for
// others.
func (p *Pool) Grow(user int64, from, to, rest int) bool {
	n := p.Cost(to - from)
	if n*(1+rest) > p.freeFor(user) {
		return false
	}
	p.take(user, n)
	return true
}

// Short reports whether there is no room to keep n more bytes for a user.
func (p *Pool) Short(user int64, n int) bool {
	if p == nil || p.Size-p.free+n <= p.Share() {
		return false // all users together have taken less than one may
	}
	return n > p.freeFor(user)
}

// Keep counts n bytes that the process keeps for a user, and with a negative
// number, bytes that it no longer keeps.
func (p *Pool) Keep(user int64, n int) {
	if p != nil {
		p.take(user, n)
	}
}

// Cost returns what n bytes of a send buffer take.
func (p *Pool) Cost(n int) int { return overshoot * n }

// SmallKept is a size in bytes that needs no room of its own: the pool counts as
// much for each connection.
const SmallKept = 1 << 10

// Kept returns what n bytes take that the process keeps: as much again until
// the garbage collector frees them.
func Kept(n int) int {
	if n <= SmallKept {
		return 0
	}
	return 2 * n
}

// Share returns what one user may take, three quarters of all.
func (p *Pool) Share() int { return p.Size / 4 * 3 }

// freeFor returns what a user may take now.
func (p *Pool) freeFor(user int64) int { return max(min(p.free, p.Share()-p.users[user]), 0) }

func (p *Pool) take(user int64, n int) {
	if n == 0 {
		return
	}
	p.free -= n
	if p.users[user] += n; p.users[user] == 0 {
		delete(p.users, user)
	}
}
