package echo

import (
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
	kept    []byte // read from in, and not acknowledged
	start   int64  // of kept, in the input
	reading bool   // somebody reads from in
	err     error  // of in, io.EOF at its end
}

func newTape(in io.Reader) *tape {
	t := &tape{in: in}
	t.changed.L = &t.mu
	return t
}

// acknowledge forgets the next n bytes.
func (t *tape) acknowledge(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n = min(n, len(t.kept)) // a server that is no echo may send more than it got
	t.start += int64(n)
	t.kept = t.kept[n:]
	if len(t.kept) == 0 {
		t.kept = nil // let the memory go
	}
}

// finished tells whether all of the input has been acknowledged.
func (t *tape) finished() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err == io.EOF && len(t.kept) == 0
}

// rewound is a reader that starts with what has not been acknowledged. The last
// reader may still be waiting for the input: what it gets is kept, too.
func (t *tape) rewound() io.Reader {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &cursor{t, t.start}
}

type cursor struct {
	*tape
	at int64 // in the input
}

func (c *cursor) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		next := c.at - c.start
		if next < 0 { // what this reader was to send has come back another way
			return 0, io.ErrClosedPipe
		}
		if next < int64(len(c.kept)) {
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
