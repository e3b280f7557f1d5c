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
// what it has, so the transfer continues. The limit fits three
// times into a container of 64 MiB: the buffer needs that while it grows, and
// until garbage is collected.
const maxKept = 8 << 20

// A tape is an input that can be rewound to the first byte not echoed yet, so
// that a broken transfer continues at the point where it broke. It keeps only
// the bytes in flight, and stops reading at its limit.
type tape struct {
	in    io.Reader
	limit int // largest number of bytes to keep

	mu      sync.Mutex
	changed sync.Cond
	kept    bytes.Buffer // the bytes in flight
	start   int64        // offset in the input of the first byte kept
	last    *cursor      // the only reader that may read
	reading bool         // a goroutine reads from in
	err     error        // of in, io.EOF at its end
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
	return bytes.HasPrefix(t.kept.Bytes(), p)
}

// forget drops the next n bytes, which were echoed.
func (t *tape) forget(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.start += int64(len(t.kept.Next(n)))
	t.changed.Broadcast()
}

// state reports whether an echo is due, and how the input ended, nil if it has
// not ended.
func (t *tape) state() (due bool, end error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept.Len() > 0, t.err
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
		if part := t.kept.Bytes()[c.at-t.start:]; len(part) > 0 {
			n := copy(p, part)
			c.at += int64(n)
			return n, nil
		}
		if t.err != nil {
			return 0, t.err
		}
		room := t.limit - t.kept.Len()
		if t.reading || room == 0 {
			t.changed.Wait()
			continue
		}
		t.reading = true
		t.mu.Unlock()
		n, err := t.in.Read(p[:min(len(p), room)]) // Read may use p as scratch space, io.Reader
		t.mu.Lock()
		t.kept.Write(p[:n])
		t.err, t.reading = err, false
		t.changed.Broadcast()
	}
}
