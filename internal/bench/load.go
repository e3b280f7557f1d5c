package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// grace is how long the last echoes may take to arrive; after that they count
// as errors.
const grace = 5 * time.Second

// measurement is one round of one row.
type measurement struct {
	histogram *hdrhistogram.Histogram
	messages  int64
	errors    int64
	reason    string // of the first error
	elapsed   time.Duration
	cpu       time.Duration // of this process
	serverCPU time.Duration // 0: not known
}

// load is what all connections of a measurement share.
type load struct {
	loop     *loop.Loop
	measured measurement
	size     int
	window   uint64
	interval time.Duration // between the messages of one connection, in an open loop
	pattern  []byte        // every message is a piece of it
	buf      []byte
	epoch    time.Time
	from, to time.Duration // the measured time, since epoch
	lanes    []*lane
	running  int // lanes that wait for an event
}

func (c Config) measure(ctx context.Context, a addr.Addr, size, connections int) (_ *measurement, err error) {
	l := &load{size: size, window: uint64(c.Window), pattern: newPattern(size), buf: make([]byte, max(size, 64<<10))}
	l.measured.histogram = newHistogram()
	if c.Rate > 0 {
		l.interval = time.Duration(float64(connections) / c.Rate * float64(time.Second))
	}
	if l.loop, err = loop.New(c.Spin); err != nil {
		return nil, err
	}
	defer l.loop.Close()
	server := 0
	for i := range connections {
		conn, err := c.Dial(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, connections, err)
		}
		fd, err := conn.Detach()
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
		// Before the descriptor is closed, because the client's name is
		// removed first.
		defer func() { _ = errors.Join(conn.Close(), unix.Close(fd)) }()
		n := &lane{load: l, fd: fd, messages: a.Type.Messages(), phase: uint64(i), starts: make([]time.Duration, c.Window)}
		n.due = l.interval * time.Duration(i) / time.Duration(connections)
		l.lanes = append(l.lanes, n)
		if cred, err := sock.PeerCred(fd); err == nil {
			server = int(cred.Pid)
		}
		if err := l.loop.Add(fd, n, unix.EPOLLIN); err != nil {
			return nil, err
		}
	}

	defer l.loop.InterruptAt(ctx)()
	l.epoch = time.Now()
	l.from, l.to = c.Warmup, c.Warmup+c.Duration
	l.running = len(l.lanes)
	for _, n := range l.lanes {
		n.send(0)
	}
	var cpu, serverCPU time.Duration
	counting := false
	for l.running > 0 {
		if err := l.loop.Wait(l.timeout()); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		now := l.now()
		if !counting && now >= l.from {
			cpu, serverCPU, counting = cpuTime(0), cpuTime(server), true
		}
		if l.interval > 0 {
			for _, n := range l.lanes {
				n.send(now)
			}
		}
		if now < l.to {
			continue
		}
		if l.measured.elapsed == 0 {
			l.measured.elapsed, l.measured.cpu = c.Duration, cpuTime(0)-cpu
			if server > 0 {
				l.measured.serverCPU = cpuTime(server) - serverCPU
			}
			for _, n := range l.lanes {
				n.finish()
			}
		}
		if now > l.to+grace {
			for _, n := range l.lanes {
				l.measured.fail(int64(n.sent-n.got), fmt.Sprintf("no echo within %v; the server is overloaded, or not an echo server", grace))
			}
			break
		}
	}
	if l.measured.elapsed == 0 { // every connection broke
		l.measured.elapsed = max(l.now()-l.from, time.Millisecond)
	}
	return &l.measured, nil
}

func (l *load) now() time.Duration { return time.Since(l.epoch) }

// timeout returns the time until the next message of an open loop is due. With
// 0 the loop does not sleep, as epoll_wait(2) counts in milliseconds.
func (l *load) timeout() time.Duration {
	now := l.now()
	if l.interval == 0 || now >= l.to {
		return max(l.to-now, time.Millisecond)
	}
	next := l.to
	for _, n := range l.lanes {
		next = min(next, n.due)
	}
	return max((next - now).Truncate(time.Millisecond), 0)
}

// A lane is one connection.
type lane struct {
	load     *load
	fd       int
	messages bool // the type keeps boundaries
	phase    uint64
	sent     uint64 // messages begun
	got      uint64 // messages echoed
	outOff   int    // bytes sent of message sent, if the socket accepted only a part
	inOff    int    // bytes received of message got
	starts   []time.Duration
	due      time.Duration // of the next message in an open loop
	blocked  bool
	done     bool
}

// message returns the k-th message of the lane: a piece of the pattern that
// begins at another place for each message, so that a byte in a wrong place is
// detected.
func (n *lane) message(k uint64) []byte {
	off := (n.phase*31 + k) % patternPhases
	return n.load.pattern[off : off+uint64(n.load.size)]
}

const patternPhases = 251

func newPattern(size int) []byte {
	p := make([]byte, size+patternPhases)
	x := uint32(1)
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

// send sends as many messages as the window and the time allow.
func (n *lane) send(now time.Duration) {
	for !n.done && !n.blocked && (n.outOff > 0 || now < n.load.to && n.sent-n.got < n.load.window) {
		if n.outOff == 0 {
			start := now
			if n.load.interval > 0 {
				if n.due > now {
					return
				}
				// The time at which it should have been sent: its waiting time
				// in this process is part of what the user waits (coordinated
				// omission).
				start = n.due
				n.due += n.load.interval
			}
			n.starts[n.sent%n.load.window] = start
			n.sent++
		}
		m := n.message(n.sent - 1)[n.outOff:]
		w, err := raw.Send(n.fd, m)
		switch {
		case err == unix.EAGAIN:
			if n.outOff == 0 {
				n.sent--
				if n.load.interval > 0 {
					n.due -= n.load.interval
				}
			}
			n.blocked = true
			n.load.loop.Watch(n.fd, unix.EPOLLIN|unix.EPOLLOUT)
			return
		case err == unix.EINTR:
			w = 0
		case err != nil:
			n.fail(1, fmt.Sprintf("send: %v", err))
			return
		}
		if n.outOff += w; n.outOff == n.load.size {
			n.outOff = 0
		}
	}
}

// Ready receives the echoes and sends the messages that may follow.
func (n *lane) Ready(events uint32) {
	if n.done {
		return
	}
	now := time.Duration(0)
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		r, err := raw.Read(n.fd, n.load.buf)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			n.fail(int64(n.sent-n.got), fmt.Sprintf("receive: %v", err))
			return
		case r == 0 && n.load.size > 0:
			n.fail(int64(n.sent-n.got), "the server closed the connection; it may be at its connection limit, deny this user, or not be an echo server")
			return
		default:
			now = n.load.now()
			n.receive(n.load.buf[:r], now)
		}
	}
	if n.done {
		return
	}
	if n.blocked && events&unix.EPOLLOUT != 0 {
		n.blocked = false
		n.load.loop.Watch(n.fd, unix.EPOLLIN)
	}
	if now == 0 {
		now = n.load.now()
	}
	n.send(now)
	n.finish()
}

func (n *lane) receive(p []byte, now time.Duration) {
	if n.messages && len(p) != n.load.size {
		n.fail(1, notEcho)
		return
	}
	for len(p) > 0 {
		if n.got == n.sent {
			n.fail(1, notEcho) // more than was sent
			return
		}
		part := p[:min(len(p), n.load.size-n.inOff)]
		if !bytes.Equal(part, n.message(n.got)[n.inOff:n.inOff+len(part)]) {
			n.fail(1, notEcho)
			return
		}
		p = p[len(part):]
		if n.inOff += len(part); n.inOff < n.load.size {
			return
		}
		n.inOff = 0
		if now >= n.load.from && now < n.load.to {
			n.load.measured.messages++
			_ = n.load.measured.histogram.RecordValue(int64(now - n.starts[n.got%n.load.window]))
		}
		n.got++
	}
}

// finish ends a lane that waits for nothing any more.
func (n *lane) finish() {
	if !n.done && n.load.now() >= n.load.to && n.got == n.sent && n.outOff == 0 {
		n.done = true
		n.load.running--
	}
}

const notEcho = "the received bytes are not the echo of the sent bytes; the server is not an echo server"

func (m *measurement) fail(count int64, reason string) {
	if m.errors == 0 && count > 0 {
		m.reason = reason
	}
	m.errors += count
}

func (n *lane) fail(count int64, reason string) {
	n.load.measured.fail(count, reason)
	n.sent, n.got = 0, 0
	n.done = true
	n.load.running--
	n.load.loop.Watch(n.fd, 0)
	n.load.loop.Remove(n.fd)
}

// cpuTime returns the CPU time that a process has used, 0 if it is not known. pid
// 0 is this process. The clock's id is made as clock_getcpuclockid(3) does.
func cpuTime(pid int) time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|2), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
