package cli

import (
	"fmt"
	"io"
	stdlog "log"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/rs/zerolog/diode"
)

// LogLines is the number of log lines that a program with an event loop keeps
// for a reader that is slow. If there are more, the oldest are dropped. A line
// has a few KiB at most, and usually less than 200 bytes.
const LogLines = 8192

// The times of [LogFlags.LoopLogger].
const (
	flushPatience = time.Second            // at the end, for a reader that takes nothing
	flushLimit    = 5 * time.Second        // at the end, for a slow reader
	nudgePeriod   = 100 * time.Millisecond // see Lines.nudge
)

// LoopLogger is [LogFlags.Logger] for a program with an event loop, which must
// not wait for the reader of its log: a terminal that is stopped, or a pipe
// that is full. identity is a field of each event, unless it is empty. Call
// Flush at the end.
func (f LogFlags) LoopLogger(w io.Writer, identity string) (zerolog.Logger, *Lines) {
	named := func(log zerolog.Logger) zerolog.Logger {
		if identity == "" {
			return log
		}
		return log.With().Str("identity", identity).Logger()
	}
	l := &Lines{out: w, report: named(f.Logger(w))}
	// Package diode reports goroutines that collide in its ring to the standard
	// logger, which would wait for the reader. It tries again by itself.
	stdlog.SetOutput(io.Discard)
	l.ring = diode.NewWriter(sink{l}, LogLines, 0, l.overrun)
	l.timer = time.AfterFunc(nudgePeriod, l.nudge)
	l.nudging.Store(true)
	return named(f.Logger(l)), l
}

// Lines passes the lines of a log on to a goroutine that writes them. Lines
// that are lost, also because writing fails, are counted, and reported in a
// line of their own once there is room.
type Lines struct {
	out     io.Writer
	report  zerolog.Logger // writes to out
	ring    diode.Writer
	missed  atomic.Uint64 // lines that the writing goroutine knows to be lost
	untold  uint64        // lines of these that no line has reported; owned by the writing goroutine
	sent    atomic.Uint64 // lines that were passed on
	done    atomic.Uint64 // lines of these that are written, or dropped
	writing atomic.Bool
	timer   *time.Timer // calls nudge
	nudging atomic.Bool // timer is set
}

// Write passes a line on, and never waits.
func (l *Lines) Write(line []byte) (int, error) {
	l.sent.Add(1)
	n, err := l.ring.Write(line)
	if l.nudging.CompareAndSwap(false, true) {
		l.timer.Reset(nudgePeriod)
	}
	return n, err
}

// nudge wakes the writing goroutine by an empty line, until it has written all
// of them. Package diode's own call for it is lost if it comes between the
// goroutine's last look at the ring and its sleep; the line would then wait for
// the next one.
func (l *Lines) nudge() {
	l.nudging.Store(false)
	if l.done.Load() >= l.sent.Load() || !l.nudging.CompareAndSwap(false, true) {
		return
	}
	if !l.writing.Load() {
		_, _ = l.ring.Write(nil)
	}
	l.timer.Reset(nudgePeriod)
}

// overrun counts lines that newer ones have overwritten. The ring calls it from
// the writing goroutine.
func (l *Lines) overrun(n int) { l.lost(uint64(n)) }

func (l *Lines) lost(n uint64) {
	l.done.Add(n)
	l.missed.Add(n)
	l.untold += n
}

// Dropped returns the number of lines that are lost, including those that newer
// ones have overwritten while the reader stands still.
func (l *Lines) Dropped() uint64 {
	missed, done := l.missed.Load(), l.done.Load()
	return missed + max(l.sent.Load(), done+LogLines) - done - LogLines
}

// Flush ends the goroutine that writes the lines, and waits until it has
// written all. It gives up if the reader takes nothing for a second. Later
// lines are lost.
func (l *Lines) Flush() {
	written := make(chan struct{})
	go func() {
		_ = l.ring.Close()
		close(written)
	}()
	for end, done := time.Now().Add(flushLimit), l.done.Load(); time.Now().Before(end); {
		select {
		case <-written:
			return
		case <-time.After(flushPatience):
		}
		before := done
		if done = l.done.Load(); done == before {
			return
		}
	}
}

// A sink is where the ring writes to.
type sink struct{ *Lines }

func (s sink) Write(line []byte) (int, error) {
	if len(line) == 0 {
		return 0, nil // a nudge
	}
	s.writing.Store(true)
	defer s.writing.Store(false)
	if n := s.untold; n > 0 {
		s.untold = 0
		s.report.Warn().Uint64("dropped", n).Msgf("%d log lines dropped", n)
	}
	n, err := s.out.Write(line)
	if err != nil {
		s.lost(1)
		return n, err
	}
	s.done.Add(1)
	return n, nil
}

// lastLine writes the line with which a program ends, but does not wait for
// long if its reader stands still.
func lastLine(w io.Writer, format string, args ...any) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		fmt.Fprintf(w, format, args...)
	}()
	select {
	case <-written:
	case <-time.After(flushPatience):
	}
}
