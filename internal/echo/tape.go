package echo

import (
	"bytes"
	"io"
	"sync"
)

// A tape is an input that can be wound back to what has not come back yet, so
// that a broken transfer goes on where it broke. It keeps only what is under
// way; the buffers of a connection bound that.
type tape struct {
	in io.Reader

	mu      sync.Mutex
	changed sync.Cond
	kept    []byte  // read from in, and not come back
	start   int64   // of kept, in the input
	last    *cursor // the reader that may read
	reading bool    // somebody reads from in
	err     error   // of in, io.EOF at its end
}

func newTape(in io.Reader) *tape {
	t := &tape{in: in}
	t.changed.L = &t.mu
	return t
}

// expects tells whether p is what has to come back next.
func (t *tape) expects(p []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.HasPrefix(t.kept, p)
}

// forget lets the next n bytes go, which are back.
func (t *tape) forget(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.start += int64(n)
	t.kept = t.kept[n:]
	if len(t.kept) == 0 {
		t.kept = nil // let the memory go
	}
}

// state tells whether something is to come back, and how the input ended, nil
// where it has not.
func (t *tape) state() (due bool, end error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.kept) > 0, t.err
}

// rewound is a reader that starts with what has not come back, and ends the one
// before. That may be waiting for the input: what it gets is kept, too.
func (t *tape) rewound() io.Reader {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = &cursor{t, t.start}
	t.changed.Broadcast()
	return t.last
}

type cursor struct {
	*tape
	at int64 // in the input
}

func (c *cursor) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.last != c {
			return 0, io.ErrClosedPipe
		}
		c.at = max(c.at, c.start) // the server may know what was not sent to it now
		if next := c.at - c.start; next < int64(len(c.kept)) {
			n := copy(p, c.kept[next:])
			c.at += int64(n)
			return n, nil
		}
		if c.err != nil {
			return 0, c.err
		}
		if c.reading {
			c.changed.Wait()
			continue
		}
		c.reading = true
		c.mu.Unlock()
		buf := make([]byte, min(len(p), 64<<10))
		n, err := c.in.Read(buf)
		c.mu.Lock()
		c.kept, c.err, c.reading = append(c.kept, buf[:n]...), err, false
		c.changed.Broadcast()
	}
}
