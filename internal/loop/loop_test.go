package loop_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/loop"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type handler func(events uint32)

func (h handler) Ready(events uint32) { h(events) }

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return fds[0], fds[1]
}

const spin = 100 * time.Microsecond

func newLoop(t *testing.T, spin time.Duration) *loop.Loop {
	t.Helper()
	l, err := loop.New(spin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func send(t *testing.T, fd int) {
	t.Helper()
	if n, err := raw.Send(fd, []byte("x")); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

func TestCallsTheHandlerUntilItHasReadAll(t *testing.T) {
	l := newLoop(t, spin)
	a, b := pair(t)
	calls := 0
	if err := l.Add(b, handler(func(events uint32) {
		if events&unix.EPOLLIN == 0 {
			t.Errorf("events %#x", events)
		}
		calls++
		if n, err := raw.Read(b, make([]byte, 1)); n != 1 || err != nil {
			t.Error(n, err)
		}
	}), unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		send(t, a)
	}
	for range 3 {
		if err := l.Wait(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 3 {
		t.Errorf("%d calls for 3 bytes", calls)
	}
	if err := l.Wait(0); err != nil || calls != 3 {
		t.Errorf("%v, %d calls with nothing to read", err, calls)
	}
	if n, err := raw.Read(b, make([]byte, 1)); err != unix.EAGAIN {
		t.Error(n, err)
	}
}

func TestWaitEndsAtTheTimeout(t *testing.T) {
	for _, spin := range []time.Duration{0, spin} {
		l := newLoop(t, spin)
		for range 3 {
			from := time.Now()
			if err := l.Wait(5 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(from); d < 5*time.Millisecond {
				t.Errorf("spin %v: after %v", spin, d)
			}
		}
	}
}

// A loop that was busy keeps a processor while it sleeps. A garbage collection
// needs all of them.
func TestCollectionEndsWhileTheLoopSleeps(t *testing.T) {
	l := newLoop(t, 0)
	a, b := pair(t)
	received := make(chan error, 1)
	if err := l.Add(b, handler(func(uint32) {
		_, err := raw.Read(b, make([]byte, 1))
		received <- err
	}), unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		defer l.InterruptAt(ctx)()
		var err error
		for ctx.Err() == nil && err == nil {
			err = l.Wait(-1)
		}
		done <- err
	}()
	var longest time.Duration
	for range 50 {
		send(t, a)
		if err := <-received; err != nil {
			t.Error(err)
		}
		from := time.Now()
		runtime.GC()
		longest = max(longest, time.Since(from))
	}
	t.Logf("the longest of 50 took %v", longest)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDeadlineEndsTheSleepOfABusyLoop(t *testing.T) {
	l := newLoop(t, 0)
	a, b := pair(t)
	if err := l.Add(b, handler(func(uint32) {
		if n, err := raw.Read(b, make([]byte, 1)); n != 1 || err != nil {
			t.Error(n, err)
		}
	}), unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	for _, timeout := range []time.Duration{time.Millisecond, 50 * time.Millisecond} {
		send(t, a)
		from := time.Now()
		for time.Since(from) < timeout {
			if err := l.Wait(timeout); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%v: after %v", timeout, time.Since(from))
	}
}

// Without Go's signals, a sleep that waited for one would never end.
func TestSleepsEndWithoutSignals(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), testkit.Patience) // it could not end itself
	defer stop()
	child := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run=^(TestCollectionEnds|TestDeadlineEnds|TestOthersGet)")
	child.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	out, err := child.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func TestInterruptEndsAWait(t *testing.T) {
	l := newLoop(t, spin)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Interrupt()
	}()
	if err := l.Wait(-1); err != nil {
		t.Fatal(err)
	}
	<-done
}

func TestWatchedForNothingIsLeftAlone(t *testing.T) {
	l := newLoop(t, 0)
	a, b := pair(t)
	if err := l.Add(b, handler(func(uint32) { t.Error("called") }), unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	l.Watch(b, 0)
	send(t, a)
	if err := l.Wait(time.Millisecond); err != nil {
		t.Fatal(err)
	}
}

func TestRemovedWhileItsEventIsPending(t *testing.T) {
	l := newLoop(t, 0)
	removedWhilePending(t, l, func(fd int) { l.Remove(fd); _ = unix.Close(fd) })
}

// The kernel continues to report a socket of which there is a copy, as in a
// child that is about to start a program.
func TestClosedWhileItsEventIsPending(t *testing.T) {
	l := newLoop(t, 0)
	removedWhilePending(t, l, l.CloseFD)
	if err := l.Wait(time.Minute); err != nil { // there are two events, and no handler
		t.Fatal(err)
	}
}

func removedWhilePending(t *testing.T, l *loop.Loop, remove func(fd int)) {
	t.Helper()
	calls := 0
	var fds [2]int
	for i := range fds {
		a, held := pair(t)
		b, err := unix.FcntlInt(uintptr(held), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds[i] = b
		send(t, a)
		if err := l.Add(b, handler(func(uint32) {
			calls++
			for _, fd := range fds { // the other descriptor's event is in the same batch
				remove(fd)
			}
		}), unix.EPOLLIN); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Wait(time.Minute); err != nil {
		t.Fatal(err)
	}
	if calls != 1 {
		t.Errorf("%d calls, want 1", calls)
	}
	for range l.Handlers {
		calls++
	}
	if calls != 1 {
		t.Errorf("%d handlers are left", calls-1)
	}
}

// turnsFor counts the turns of a loop that always has something to do, until
// other goroutines have sent a byte to and fro n times.
func turnsFor(t *testing.T, processors, n int) (turns int) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
	l := newLoop(t, 0)
	a, b := pair(t)
	send(t, a)
	if err := l.Add(b, handler(func(uint32) {}), unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- toAndFro(n) }()
	for {
		if err := l.Wait(-1); err != nil {
			t.Fatal(err)
		}
		turns++
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return turns
		default:
		}
	}
}

// toAndFro sends over package net, as the admin socket does: a goroutine that
// waits there also needs the scheduler to check the network.
func toAndFro(n int) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		ends[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			return err
		}
		defer func() { _ = ends[i].Close() }()
	}
	back := make(chan error, 1)
	go func() {
		_, err := io.CopyN(ends[1], ends[1], int64(n))
		back <- err
	}()
	for buf := []byte("x"); n > 0; n-- {
		if _, err := ends[0].Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(ends[0], buf); err != nil {
			return err
		}
	}
	return <-back
}

func TestOthersGetTheirTurnsWithOneProcessor(t *testing.T) {
	const n = 100
	two := n // at least: the others can be quick while the loop has no CPU at all
	for range 5 {
		two = max(two, turnsFor(t, 2, n))
		one := turnsFor(t, 1, n)
		t.Logf("up to %d turns with two processors, %d with one", two, one)
		if one <= 100*two { // it was 1,000 times and more, each time
			return
		}
	}
	t.Errorf("with one processor, others hardly get their turns")
}
