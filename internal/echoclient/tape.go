package echoclient

import (
	"bytes"
	"io"
	"sync"
)

// maxKept is how many bytes a client that may connect again keeps: those that are
// sent and not back. Without a bound, a server that reads and never answers
// would fill the memory. The send buffers of both sides, 208 KiB each where
// nobody has set them, hold far less; and where they hold more, an echo server
// answers what it has, so that the transfer goes on. It fits a container of
// 64 MiB twice: while the ring grows, and in garbage.
const maxKept = 8 << 20

// A tape is an input that can be wound back to what has not come back yet, so
// that a broken transfer goes on where it broke. It keeps only what is under
// way, and reads no further while that is as much as it may keep.
type tape struct {
	in    io.Reader
	limit int // of what is kept, in bytes

	mu      sync.Mutex
	changed sync.Cond
	ring    []byte  // the byte at n of the input is at n modulo its length
	start   int64   // of what is kept, in the input
	end     int64   // likewise
	last    *cursor // the reader that may read
	reading bool    // somebody reads from in
	err     error   // of in, io.EOF at its end
}

func newTape(in io.Reader, limit int) *tape {
	t := &tape{in: in, limit: limit}
	t.changed.L = &t.mu
	return t
}

// expects tells whether p is what has to come back next.
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

// from is what is kept from a place of the input on, up to the end of the ring.
func (t *tape) from(at int64) []byte {
	if at == t.end {
		return nil
	}
	part := t.ring[at%int64(len(t.ring)):]
	return part[:min(int64(len(part)), t.end-at)]
}

// keep adds what was read, for which there is room.
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

// forget lets the next n bytes go, which are back.
func (t *tape) forget(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.start += int64(n)
	if t.kept() == 0 {
		t.ring = nil // let the memory go
	}
	t.changed.Broadcast()
}

// state tells whether something is to come back, and how the input ended, nil
// where it has not.
func (t *tape) state() (due bool, end error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept() > 0, t.err
}

// rewound is a reader that starts with what has not come back, and ends the one
// before. That may be waiting for the input: what it gets is kept, too. Or it
// waits for room.
func (t *tape) rewound() io.Reader {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = &cursor{t, t.start}
	t.changed.Broadcast()
	return t.last
}

type cursor struct {
	tape *tape
	at   int64 // in the input
}

func (c *cursor) Read(p []byte) (int, error) {
	t := c.tape
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if t.last != c {
			return 0, io.ErrClosedPipe
		}
		c.at = max(c.at, t.start) // the server may know what was not sent to it now
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
		n, err := t.in.Read(p[:min(len(p), room)]) // which may be used as scratch space, io.Reader
		t.mu.Lock()
		t.keep(p[:n])
		t.err, t.reading = err, false
		t.changed.Broadcast()
	}
}
