package echo

import (
	"bytes"
	"io"
	"sync"
)

// maxKept is how many bytes a client that may connect again keeps: bytes that
// are sent and not echoed yet. Without a limit, a server that reads and never
// answers would fill the memory. The send buffers of both sides, 208 KiB each
// by default, hold far less. If they hold more, an echo server still answers
// what it has, so the transfer continues. The limit fits twice into a
// container of 64 MiB: the ring needs that while it grows, and until garbage
// is collected.
const maxKept = 8 << 20

// A tape is an input that can be rewound to the first byte not echoed yet, so
// that a broken transfer continues at the point where it broke. It keeps only
// the bytes in flight, and stops reading at its limit.
type tape struct {
	in    io.Reader
	limit int // largest number of bytes to keep

	mu      sync.Mutex
	changed sync.Cond
	ring    []byte  // the byte at n of the input is at n modulo its length
	start   int64   // offset in the input of the first byte kept
	end     int64   // offset in the input after the last byte kept
	last    *cursor // the only reader that may read
	reading bool    // a goroutine reads from in
	err     error   // of in, io.EOF at its end
}

func newTape(in io.Reader, limit int) *tape {
	t := &tape{in: in, limit: limit}
	t.changed.L = &t.mu
	return t
}

// expects reports whether p is the next part of the expected echo.
func (t *tape) expects(p []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := t.start; len(p) > 0; {
		part := t.from(at)
		part = part[:min(len(part), len(p))]
		if len(part) == 0 || !bytes.HasPrefix(p, part) {
			return false
		}
		at, p = at+int64(len(part)), p[len(part):]
	}
	return true
}

// from returns the bytes kept from offset at on, up to the end of the ring.
func (t *tape) from(at int64) []byte {
	if at == t.end {
		return nil
	}
	part := t.ring[at%int64(len(t.ring)):]
	return part[:min(int64(len(part)), t.end-at)]
}

// keep adds the bytes read, for which there is room.
func (t *tape) keep(p []byte) {
	if need := t.kept() + len(p); need > len(t.ring) {
		larger := make([]byte, min(max(2*len(t.ring), need), t.limit))
		for at := t.start; at < t.end; {
			at += int64(copy(larger[at%int64(len(larger)):], t.from(at)))
		}
		t.ring = larger
	}
	for len(p) > 0 {
		n := copy(t.ring[t.end%int64(len(t.ring)):], p)
		t.end, p = t.end+int64(n), p[n:]
	}
}

func (t *tape) kept() int { return int(t.end - t.start) }

// forget drops the next n bytes, which were echoed.
func (t *tape) forget(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.start += int64(n)
	if t.kept() == 0 {
		t.ring = nil // free the memory
	}
	t.changed.Broadcast()
}

// state reports whether an echo is due, and how the input ended, nil if it has
// not ended.
func (t *tape) state() (due bool, end error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept() > 0, t.err
}

// rewound returns a reader that starts with the first byte not echoed, and
// ends the previous reader. That reader may be waiting for the input: the
// bytes it gets are kept, too. Or it may be waiting for room.
func (t *tape) rewound() io.Reader {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = &cursor{t, t.start}
	t.changed.Broadcast()
	return t.last
}

type cursor struct {
	tape *tape
	at   int64 // offset in the input
}

func (c *cursor) Read(p []byte) (int, error) {
	t := c.tape
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if t.last != c {
			return 0, io.ErrClosedPipe
		}
		c.at = max(c.at, t.start) // the server already knows the bytes in between
		if part := t.from(c.at); len(part) > 0 {
			n := copy(p, part)
			c.at += int64(n)
			return n, nil
		}
		if t.err != nil {
			return 0, t.err
		}
		room := t.limit - t.kept()
		if t.reading || room == 0 {
			t.changed.Wait()
			continue
		}
		t.reading = true
		t.mu.Unlock()
		n, err := t.in.Read(p[:min(len(p), room)]) // Read may use p as scratch space, io.Reader
		t.mu.Lock()
		t.keep(p[:n])
		t.err, t.reading = err, false
		t.changed.Broadcast()
	}
}
