// Package record shows what passes through a relay while it passes: as a hex
// dump for people, as JSON for programs, or as a capture for Wireshark and its
// programs, which then decode the protocol.
//
// The relay never waits for a record. Pieces go through a bounded queue to a
// goroutine of their own. Pieces that do not fit there, or cannot be written,
// are lost and counted; the log and the record show the count.
package record

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// The limits of the queue.
const (
	maxPieces = 4096
	maxBytes  = 16 << 20
)

// patience is how long Close waits for a reader that is behind.
const patience = 2 * time.Second

// A Recorder writes a record. A nil one records nothing.
type Recorder struct {
	out    io.Writer
	file   *os.File // the file that out writes to; nil if it is standard output
	size   int64    // of file, counting whole pieces
	encode func(*piece) ([]byte, error)
	log    zerolog.Logger
	queue  chan *piece
	bytes  atomic.Int64  // in queue
	lost   atomic.Uint64 // pieces
	gone   atomic.Bool   // the reader has ended, or Close gave up
	failed chan error    // the first error of writing
	ended  chan struct{}
}

// A Conn is a connection as the record knows it. A nil Conn is not recorded.
type Conn struct {
	ID     uint64
	Peer   string      // the client's address; "" if it has none
	Cred   *unix.Ucred // nil if not known
	Target string      // the target's address

	recorder *Recorder
	stream   *stream // of a capture; used by the writing goroutine only
}

// A piece is the data that passed at once, or the start or end of a direction
// or connection.
type piece struct {
	when     time.Time
	conn     *Conn
	what     event
	toTarget bool
	payload  []byte
	files    []string // the kind of each descriptor
	lost     uint64   // how many pieces are missing before this one
}

type event int

const (
	opened event = iota
	data
	ended // one direction has ended
)

// Check rejects a form that [New] does not know.
func Check(form string) error {
	if form != "hex" && form != "json" && !strings.HasSuffix(form, ".pcapng") {
		return fmt.Errorf("--show %s: unknown form; write hex, json, or the name of a file that ends in .pcapng", form)
	}
	return nil
}

// New starts a record. form is hex or json, to out, or the name of a file that
// ends in .pcapng. New creates that file with mode 0600, and fails if it
// exists. In it the target has this port, by which Wireshark chooses the
// protocol.
func New(form string, port uint16, out io.Writer, colour bool, log zerolog.Logger) (*Recorder, error) {
	r := &Recorder{out: out, log: log, queue: make(chan *piece, maxPieces), failed: make(chan error, 1), ended: make(chan struct{})}
	switch form {
	case "hex":
		r.encode = hexDump(colour)
	case "json":
		r.encode = encodeJSON
	default:
		file, err := os.OpenFile(form, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("--show %s: the file exists, and is left alone; choose another name", form)
		}
		if err != nil {
			return nil, fmt.Errorf("--show: %w", err)
		}
		r.out, r.file = file, file
		var header []byte
		if r.encode, header, err = capture(port); err == nil {
			err = r.write(header)
		}
		if err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("--show %s: %w", form, err)
		}
	}
	go r.run()
	return r, nil
}

// Failed returns a channel for the first error of writing the record.
func (r *Recorder) Failed() <-chan error { return r.failed }

// Open records that a connection begins.
func (r *Recorder) Open(c Conn) *Conn {
	if r == nil {
		return nil
	}
	c.recorder = r
	c.put(&piece{what: opened})
	return &c
}

// Data records the bytes that one side sent, and the descriptors sent with
// them.
func (c *Conn) Data(toTarget bool, payload []byte, files []int) {
	if c == nil {
		return
	}
	if c.recorder.gone.Load() || c.recorder.bytes.Load()+int64(len(payload)) > maxBytes {
		c.recorder.lost.Add(1) // check before the copy is made
		return
	}
	c.put(&piece{what: data, toTarget: toTarget, payload: slices.Clone(payload), files: kinds(files)})
}

// End records that one side sends nothing more.
func (c *Conn) End(toTarget bool) {
	if c != nil {
		c.put(&piece{what: ended, toTarget: toTarget})
	}
}

func (c *Conn) put(p *piece) {
	r := c.recorder
	p.when, p.conn = time.Now(), c
	r.bytes.Add(int64(len(p.payload)))
	select {
	case r.queue <- p:
	default:
		r.bytes.Add(-int64(len(p.payload)))
		r.lost.Add(1)
	}
}

// Close ends the record, and returns how many pieces were lost. Nothing may be
// recorded after it.
func (r *Recorder) Close() (lost uint64) {
	if r == nil {
		return 0
	}
	close(r.queue)
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.gone.Store(true) // the reader does not read, and may never do so
		return r.lost.Load() + uint64(len(r.queue)) + 1
	}
	if r.file != nil {
		if err := r.file.Close(); err != nil {
			r.log.Warn().Err(err).Msgf("cannot write the record: %v", err)
		}
	}
	return r.lost.Load()
}

func (r *Recorder) run() {
	defer close(r.ended)
	told, missing := uint64(0), uint64(0)
	toldAt := time.Time{}
	for p := range r.queue {
		r.bytes.Add(-int64(len(p.payload)))
		lost := r.lost.Load()
		p.lost = lost - missing
		if lost > told && time.Since(toldAt) > time.Second {
			r.log.Warn().Uint64("lost", lost).Msgf("the record lacks %d pieces so far: its reader, or its file, is too slow or gone; relaying continues", lost)
			told, toldAt = lost, time.Now()
		}
		if r.gone.Load() {
			r.lost.Add(1)
			continue
		}
		text, err := r.encode(p)
		if err == nil {
			err = r.write(text)
		}
		if err == nil {
			missing = lost
			continue
		}
		select {
		case r.failed <- err:
		default:
		}
		if n := r.lost.Add(1); n == lost+1 && told == lost {
			r.log.Warn().Err(err).Msgf("cannot write the record: %s; relaying continues", logtext.Escape(err.Error()))
			told, toldAt = n, time.Now()
		}
		r.gone.Store(errors.Is(err, unix.EPIPE))
	}
}

// write writes a whole piece. To a file it writes all of a piece or nothing:
// half a block would make the rest unreadable.
func (r *Recorder) write(text []byte) error {
	n, err := r.out.Write(text)
	if r.file == nil {
		return err
	}
	if err != nil && n > 0 {
		if err := errors.Join(r.file.Truncate(r.size), seek(r.file, r.size)); err != nil {
			r.gone.Store(true)
		}
	}
	if err == nil {
		r.size += int64(n)
	}
	return err
}

func seek(f *os.File, to int64) error {
	_, err := f.Seek(to, io.SeekStart)
	return err
}

// kinds describes in words what each descriptor leads to.
func kinds(files []int) (words []string) {
	for _, fd := range files {
		var st unix.Statx_t
		kind := "unknown"
		// Without DONT_SYNC, FUSE would ask the process that serves the file.
		if unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) == nil {
			kind = why.Kind(uint32(st.Mode))
		}
		link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		switch {
		case strings.HasPrefix(link, "anon_inode:"):
			kind = strings.Trim(strings.TrimPrefix(link, "anon_inode:"), "[]")
		case strings.HasPrefix(link, "/memfd:"):
			kind = "memory"
		}
		words = append(words, kind)
	}
	return words
}
