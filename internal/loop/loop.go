// Package loop waits for readiness with epoll(7) and calls handlers that do
// the reading and writing: many connections on one thread, at almost no cost
// for each.
package loop

import (
	"context"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// A loop that was busy keeps its processor from the Go scheduler while it
// sleeps: handing it over and getting it back costs a good part of an echo. The
// timer of a short wait costs as much. So the loop waits until Go sends SIGURG,
// which ends epoll_wait(2): when a garbage collection begins, and in any case
// after 10 ms or a little more.
const (
	// soon is a number of milliseconds for which the signal may come too late.
	soon = 20
	// hold is for how many milliseconds the loop keeps its processor if no signal
	// comes, or if there are other loops, which together could take all
	// processors.
	hold = 1
)

// signals reports whether Go sends the signal.
var signals = !strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff")

var loops atomic.Int32 // that are open

// processors is the number of processors given to Go.
var processors = runtime.GOMAXPROCS(0)

// A Handler handles the events of its descriptor.
type Handler interface {
	// Ready is called with the events for which the descriptor is ready; it
	// must not block. If it leaves work undone, it is called again: epoll is
	// level-triggered here.
	Ready(events uint32)
}

// A Loop belongs to one goroutine; only Post and Interrupt may be called from
// others.
type Loop struct {
	epoll    int
	wake     int // an eventfd(2)
	turns    uint64
	handlers []Handler
	events   [256]unix.EpollEvent
	next, n  int // indexes of events whose handlers have not been called yet

	spin time.Duration
	busy bool // the last wait found something
	miss int  // spins in a row that found nothing
	sit  int  // waits that the next spin skips, so that misses cost less and less

	mu     sync.Mutex
	posted []func()
	closed bool
	some   atomic.Bool // posted is not empty
}

// New makes a loop that polls for the duration spin, after it had something to
// do, before it sleeps: falling asleep and waking up cost more than an echo. It
// takes some 50 µs to wake the other end on a virtual machine. A longer spin, as
// the programs have by default, brings two ends that sleep back to answering at
// once: when the first answer comes, the end that spins is still awake. With one
// processor the loop does not poll, because the process it waits for could not
// run.
//
// A loop keeps one of Go's processors for itself. If there is only one, New
// makes Go use a second for the other goroutines: the kernel shares the CPU
// between them and the loop. Yielding to them at each turn would not work, as
// Go's scheduler checks the network only when no goroutine can run, or every
// 10 ms.
func New(spin time.Duration) (l *Loop, err error) {
	l = &Loop{epoll: -1, wake: -1}
	if processors > 1 {
		l.spin = spin
	}
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	loops.Add(1)
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		l.Close()
		return nil, os.NewSyscallError("eventfd", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.wake)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.wake, &ev); err != nil {
		l.Close()
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return l, nil
}

// Post makes the loop's goroutine call f once the handlers of its turn have been
// called, and reports whether it will: not if the loop is closed.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.posted = append(l.posted, f)
	l.some.Store(true)
	l.Interrupt()
	return true
}

// After posts f once d has passed.
func (l *Loop) After(d time.Duration, f func()) { time.AfterFunc(d, func() { l.Post(f) }) }

// CallPosted calls what was posted.
func (l *Loop) CallPosted() {
	if l.some.Load() {
		l.mu.Lock()
		posted := l.posted
		l.posted = nil
		l.some.Store(false)
		l.mu.Unlock()
		for _, f := range posted {
			f()
		}
	}
}

// Close calls what was posted, and closes the loop, but not the descriptors that
// were added to it.
func (l *Loop) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.CallPosted()
	loops.Add(-1)
	for _, fd := range []int{l.wake, l.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Add makes h handle the events of fd, EPOLLIN for example.
func (l *Loop) Add(fd int, h Handler, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	if fd >= len(l.handlers) { // append would grow in smaller steps, and leave more garbage
		grown := make([]Handler, 2*(fd+1))
		copy(grown, l.handlers)
		l.handlers = grown
	}
	l.handlers[fd] = h
	return nil
}

// Watch changes the events that the loop waits for. It cannot fail on a
// descriptor that was added.
func (l *Loop) Watch(fd int, events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &ev)
}

// Remove forgets a descriptor that is about to be closed. It also forgets an
// event of it that the loop may have read from the kernel already: a new
// connection with the same number must not get that event.
func (l *Loop) Remove(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	l.forget(fd)
}

// CloseFD is Remove and close(2), which takes a descriptor out of epoll, unless
// a process that this one is about to start still has a copy of it.
func (l *Loop) CloseFD(fd int) {
	_ = unix.Close(fd)
	l.forget(fd)
}

func (l *Loop) forget(fd int) {
	l.handlers[fd] = nil
	for i := l.next; i < l.n; i++ {
		if l.events[i].Fd == int32(fd) {
			l.events[i].Fd = -1
		}
	}
}

// Turn returns the number of waits so far.
func (l *Loop) Turn() uint64 { return l.turns }

// Handlers yields the handlers that were added and not removed.
func (l *Loop) Handlers(yield func(Handler) bool) {
	for _, h := range l.handlers {
		if h != nil && !yield(h) {
			return
		}
	}
}

// Wait sleeps until a descriptor is ready, or for timeout if it is not
// negative, and calls the handler of each ready descriptor once, and then what
// was posted. It may return earlier.
func (l *Loop) Wait(timeout time.Duration) error {
	n, err := l.await(timeout)
	if err != nil {
		return os.NewSyscallError("epoll_wait", err)
	}
	l.busy = n > 0
	l.turns++
	for l.next, l.n = 0, n; l.next < l.n; {
		ev := l.events[l.next]
		l.next++
		switch {
		case ev.Fd == int32(l.wake):
			var n [8]byte
			_, _ = unix.Read(l.wake, n[:])
		case ev.Fd >= 0: // otherwise it was removed meanwhile
			if h := l.handlers[ev.Fd]; h != nil { // otherwise a copy of it is still open, see CloseFD
				h.Ready(ev.Events)
			}
		}
	}
	l.CallPosted()
	return nil
}

func (l *Loop) await(timeout time.Duration) (int, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	switch {
	case ms == 0:
		return l.poll(0)
	case !l.busy:
		return interrupted(unix.EpollWait(l.epoll, l.events[:], ms))
	}
	if n := l.ask(); n > 0 {
		return n, nil
	}
	switch { // if nothing comes, the next wait is not busy
	case !signals || loops.Load() > 1:
		ms = hold
	case ms > soon:
		ms = -1
	}
	return l.poll(ms)
}

// maxMiss limits how rarely a loop that misses spins: every 64th time.
const maxMiss = 6

// ask spins. A peer that answers late makes it miss, and every miss doubles
// the pause before the next spin.
func (l *Loop) ask() int {
	if l.spin == 0 {
		return 0
	}
	if l.sit > 0 {
		l.sit--
		return 0
	}
	for from := time.Now(); time.Since(from) < l.spin; {
		for range 8 {
			if n, err := l.poll(0); n > 0 || err != nil {
				l.miss = 0
				return n
			}
		}
	}
	l.miss = min(l.miss+1, maxMiss)
	l.sit = 1 << l.miss
	return 0
}

// poll waits for ms milliseconds and keeps the processor, see hold.
func (l *Loop) poll(ms int) (int, error) { return interrupted(raw.Wait(l.epoll, l.events[:], ms)) }

// interrupted lets a signal end a wait as if it had found nothing.
func interrupted(n int, err error) (int, error) {
	if err == unix.EINTR {
		return 0, nil
	}
	return n, err
}

// Interrupt ends a wait from another goroutine.
func (l *Loop) Interrupt() { _, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// InterruptAt interrupts the loop when ctx ends. Call stop before the loop is
// closed.
func (l *Loop) InterruptAt(ctx context.Context) (stop func()) {
	woken := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() { l.Interrupt(); close(woken) })
	return func() {
		if !cancel() {
			<-woken // it must not write to a descriptor that is closed by then
		}
	}
}
