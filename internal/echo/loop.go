package echo

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A loop awaits readiness with epoll(7), level-triggered, for handlers that do
// the reading and writing.
type loop struct {
	epoll    int
	wake     int // an eventfd(2)
	handlers []handler
	events   [256]unix.EpollEvent
}

type handler interface {
	// ready is called with the events for which the descriptor is; it must not
	// block. What it leaves undone brings the next call.
	ready(events uint32)
}

func (l *loop) start() (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	return l.add(l.wake, (*waker)(l), unix.EPOLLIN)
}

func (l *loop) close() {
	for _, fd := range []int{l.wake, l.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func (l *loop) add(fd int, h handler, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	if fd >= len(l.handlers) {
		l.handlers = append(l.handlers, make([]handler, fd+1-len(l.handlers))...)
	}
	l.handlers[fd] = h
	return nil
}

// watch changes what the loop waits for. It cannot fail on a descriptor that
// was added.
func (l *loop) watch(fd int, events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &ev)
}

// remove forgets a descriptor that is about to be closed. An event of it that
// was already taken from the kernel finds no handler, or that of a new
// connection with the same number, which then reads and finds nothing.
func (l *loop) remove(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	l.handlers[fd] = nil
}

// wait calls the handlers of what is ready, once each.
func (l *loop) wait(timeout time.Duration) error {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(l.epoll, l.events[:], ms)
	if err != nil && err != unix.EINTR {
		return os.NewSyscallError("epoll_wait", err)
	}
	for _, ev := range l.events[:max(n, 0)] {
		if h := l.handlers[ev.Fd]; h != nil {
			h.ready(ev.Events)
		}
	}
	return nil
}

// interrupt ends a wait from another goroutine.
func (l *loop) interrupt() { _, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

type waker loop

func (w *waker) ready(uint32) {
	var n [8]byte
	_, _ = unix.Read(w.wake, n[:])
}
