// Package loop awaits readiness with epoll(7) for handlers that do the reading
// and writing: many connections on one thread, and next to nothing for each.
package loop

import (
	"context"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/raw"
)

// Spin is how long a loop goes on asking, after it had something to do, before
// it sleeps. Falling asleep and being woken costs more than an echo does. It is
// longer than waking the other end takes on a virtual machine, some 50 µs: so
// one that spins brings two that sleep back to answering at once.
const Spin = 100 * time.Microsecond

// hold is how long a sleeping loop keeps its processor from the Go scheduler.
// Handing it over and getting it back costs a good part of an echo, but a
// garbage collection would have to wait for it, and so would every other
// goroutine if it were the only one, see [New].
const hold = time.Millisecond

// processors is how many Go was given.
var processors = runtime.GOMAXPROCS(0)

// A Handler does what its descriptor is ready for.
type Handler interface {
	// Ready is called with the events for which the descriptor is; it must not
	// block. What it leaves undone brings the next call: epoll is
	// level-triggered here.
	Ready(events uint32)
}

// A Loop belongs to one goroutine; only Interrupt is for others.
type Loop struct {
	epoll    int
	wake     int // an eventfd(2)
	handlers []Handler
	events   [256]unix.EpollEvent
	next, n  int // of events, those whose handlers have not been called yet

	spin time.Duration
	busy bool // the last wait found something
	miss int  // spins in a row that found nothing
	sit  int  // waits that the next spin sits out, so that misses cost less and less
}

// New makes a loop that asks for so long before it sleeps; see [Spin]. With one
// processor it does not: whom it waits for could not run.
//
// A loop keeps one of Go's processors for itself. Where there is only one, New
// has Go use a second for the other goroutines: the kernel shares the CPU between
// them and the loop. Giving way to them at each turn would not do, as Go's
// scheduler looks at the network only when no goroutine can run, or every 10 ms.
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

// Close closes the loop, not what was added to it.
func (l *Loop) Close() {
	for _, fd := range []int{l.wake, l.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Add has h handle the events of fd, EPOLLIN for example.
func (l *Loop) Add(fd int, h Handler, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	if fd >= len(l.handlers) {
		l.handlers = append(l.handlers, make([]Handler, fd+1-len(l.handlers))...)
	}
	l.handlers[fd] = h
	return nil
}

// Watch changes what the loop waits for. It cannot fail on a descriptor that
// was added.
func (l *Loop) Watch(fd int, events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &ev)
}

// Remove forgets a descriptor that is about to be closed, and the event of it
// that may have been taken from the kernel already: a new connection with the
// same number must not get it.
func (l *Loop) Remove(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	l.handlers[fd] = nil
	for i := l.next; i < l.n; i++ {
		if l.events[i].Fd == int32(fd) {
			l.events[i].Fd = -1
		}
	}
}

// Handlers yields what was added and not removed.
func (l *Loop) Handlers(yield func(Handler) bool) {
	for _, h := range l.handlers {
		if h != nil && !yield(h) {
			return
		}
	}
}

// Wait sleeps until something is ready, or for timeout where it is not
// negative, and calls the handlers of what is, once each.
func (l *Loop) Wait(timeout time.Duration) error {
	n, err := l.await(timeout)
	if err != nil {
		return os.NewSyscallError("epoll_wait", err)
	}
	l.busy = n > 0
	for l.next, l.n = 0, n; l.next < l.n; {
		ev := l.events[l.next]
		l.next++
		switch {
		case ev.Fd == int32(l.wake):
			var n [8]byte
			_, _ = unix.Read(l.wake, n[:])
		case ev.Fd >= 0: // or it was removed meanwhile
			l.handlers[ev.Fd].Ready(ev.Events)
		}
	}
	return nil
}

func (l *Loop) await(timeout time.Duration) (int, error) {
	if timeout == 0 {
		return l.poll(0)
	}
	if l.busy {
		if n := l.ask(); n > 0 {
			return n, nil
		}
		n, err := l.poll(hold)
		if n > 0 || err != nil || timeout > 0 && timeout <= hold {
			return n, err
		}
	}
	ms := -1
	if timeout > 0 {
		ms = milliseconds(timeout)
	}
	n, err := unix.EpollWait(l.epoll, l.events[:], ms)
	if err == unix.EINTR {
		return 0, nil
	}
	return n, err
}

// maxMiss bounds how seldom a loop that misses spins: every 64th time.
const maxMiss = 6

// ask spins. Who answers late makes it miss, and every miss makes it rest for
// twice as long before it tries again.
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

// poll waits for a moment, or not at all.
func (l *Loop) poll(timeout time.Duration) (int, error) {
	n, err := raw.Wait(l.epoll, l.events[:], timeout)
	if err == unix.EINTR {
		return 0, nil
	}
	return n, err
}

func milliseconds(d time.Duration) int { return int((d + time.Millisecond - 1) / time.Millisecond) }

// Interrupt ends a wait from another goroutine.
func (l *Loop) Interrupt() { _, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// InterruptAt interrupts when ctx ends. It must be stopped before the loop is
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
