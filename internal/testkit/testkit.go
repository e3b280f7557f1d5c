// Package testkit holds what the tests of several packages share: checks,
// waiting for events, our programs as processes, an unreliable connection
// between client and server (see [Proxy]), the matrix of faults (see
// [FaultRow]), and the flags in docs/options.md (see [ReportOptions]).
//
// Only tests import it, so no released program contains package testing. It
// imports no other package of this project, so the tests of each package can
// use it.
package testkit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is the longest wait for an event: a minute, and longer in proportion on a
// machine that is slower than usual when the tests start. It measures nothing, so it
// is long enough for a busy machine.
var Patience = time.Duration(float64(time.Minute) * slowness())

// Unhurried is a timeout that an echo on a busy machine does not exceed, and that a
// test can wait for.
var Unhurried = Patience / 30

// slowness returns how much longer than on a quiet machine of 2020 a thousand round
// trips through a pipe take here, at least 1. It is the best of several tries, as a
// pause of the whole machine is as long as one of them.
func slowness() float64 {
	r, w, err := os.Pipe()
	if err != nil {
		return 1
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	best := time.Hour
	for range 5 {
		began, b := time.Now(), []byte{0}
		for range 1000 {
			if _, err := w.Write(b); err != nil {
				return 1
			}
			if _, err := r.Read(b); err != nil {
				return 1
			}
		}
		best = min(best, time.Since(began))
	}
	return max(1, float64(best)/float64(usual))
}

// usual is how long that takes, with the race detector.
const usual = 5 * time.Millisecond

// Ready waits until a descriptor has one of events, or its other side has ended,
// poll(2), and reports whether that came within [Patience].
func Ready(t testing.TB, fd int, events int16) bool {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(poll, int(Patience.Milliseconds()))
		if err == unix.EINTR { // of Go's own signals
			continue
		}
		Check(t, err)
		return n > 0
	}
}

// Check ends the test if there is an error.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Stress reports whether the tests run with the counts of docs/faults.csv, as
// `make stress` requests with STRESS=1 in the environment. Otherwise they run
// the same code with smaller counts.
func Stress() bool { return os.Getenv("STRESS") != "" }

// Count returns few, or with [Stress] many.
func Count[T any](few, many T) T {
	if Stress() {
		return many
	}
	return few
}

// WaitInParallel makes more parallel tests run at once than there are
// processors, unless the flag -parallel sets a number. It is for a package
// whose tests wait for processes, containers or timeouts most of the time.
func WaitInParallel() {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("6"); err != nil {
			panic(err) // it is a number
		}
	}
}

// StressOnly skips a test, unless [Stress] is on, if it takes long with any
// count, or needs large programs.
func StressOnly(t testing.TB) {
	t.Helper()
	if !Stress() {
		t.Skip("make stress runs it")
	}
}

// Need skips the test if a program of the system is missing, and names the
// package that contains it.
func Need(t testing.TB, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		Missing(t, program, "install the package "+pkg)
	}
}

// NeedNamespace skips the test if this process cannot make these namespaces, options
// of unshare(1): in a container or a chroot most processes cannot.
func NeedNamespace(t testing.TB, options ...string) {
	t.Helper()
	Need(t, "unshare", "util-linux")
	if out, err := exec.Command("unshare", append(options, "true")...).CombinedOutput(); err != nil {
		Missing(t, fmt.Sprintf("the right to make a namespace (%s)", strings.TrimSpace(string(out))), "run the tests outside of containers and chroots")
	}
}

// NeedRoot skips the test if it does not run as root; reason states why it
// must.
func NeedRoot(t testing.TB, reason string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root, "+reason, "run the tests as root")
	}
}

// Missing skips a test that lacks something. With CI=true in the environment
// the test fails instead, so that nothing stays untested there.
func Missing(t testing.TB, what, cure string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing %s: %s", what, cure)
	}
	t.Skipf("missing %s: %s", what, cure)
}

// Dir creates a directory that other users can enter, and removes it at the
// end of the test. Its path is short, because sun_path is: the path of
// t.TempDir contains the name of the test.
func Dir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	Check(t, err)
	t.Cleanup(func() { Check(t, os.RemoveAll(d)) })
	Check(t, os.Chmod(d, 0o755))
	return d
}

// Setting reads a number that the kernel shows in /proc/sys/net.
func Setting(t testing.TB, name string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/" + name)
	Check(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	Check(t, err)
	return n
}

// Await polls, for a condition that no event reports, until poll returns no
// error.
func Await(t testing.TB, poll func() error) {
	t.Helper()
	for late := time.Now().Add(Patience); ; time.Sleep(5 * time.Millisecond) {
		err := poll()
		if err == nil {
			return
		}
		if time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

// WantFiles checks that a directory contains these files, sorted, and no others.
func WantFiles(t testing.TB, d string, want ...string) {
	t.Helper()
	if got := names(t, d); !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, not %q", got, want)
	}
}

// WantGone checks that there is no file at a path.
func WantGone(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left behind (%v)", path, err)
	}
}

// WantWords checks that a text contains all these words.
func WantWords(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not contain %q", text, w)
		}
	}
}

// WantError checks that there is an error, and that it contains all these words.
func WantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that contains %q", words)
	}
	WantWords(t, err.Error(), words...)
}

// Beside returns the path of a hidden file that belongs to the socket at path:
// its lock, ".lock", or its control socket, ".takeover".
func Beside(path, suffix string) string {
	dir, name := filepath.Split(path)
	return dir + "." + name + suffix
}

// WatchModes watches a directory. The function that it returns returns the
// names of the files in it whose mode, owner or other attributes have changed
// since they appeared, inotify(7).
func WatchModes(t testing.TB, d string) (changed func() []string) {
	t.Helper()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	Check(t, err)
	t.Cleanup(func() { Check(t, unix.Close(watch)) })
	_, err = unix.InotifyAddWatch(watch, d, unix.IN_ATTRIB)
	Check(t, err)
	return func() (names []string) {
		t.Helper()
		buf := make([]byte, 64<<10)
		n, err := unix.Read(watch, buf)
		if err == unix.EAGAIN {
			return nil
		}
		Check(t, err)
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[unix.SizeofInotifyEvent-4:]))
			names = append(names, string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00")))
			b = b[size:]
		}
		return names
	}
}

// NoStarts keeps all tests from starting processes until end is called: a child has
// copies of all descriptors until a moment after it executes its program, so it may
// be the last to close one that was opened before.
func NoStarts(t testing.TB) (end func()) {
	syscall.ForkLock.RLock()
	end = sync.OnceFunc(syscall.ForkLock.RUnlock)
	t.Cleanup(end)
	return end
}

// AwaitClosed waits until no process has a socket that was bound to this name: a
// child may have a copy, see [NoStarts].
func AwaitClosed(t testing.TB, name string) {
	t.Helper()
	Await(t, func() error {
		sockets, err := os.ReadFile("/proc/net/unix")
		if err == nil && bytes.Contains(sockets, []byte(" "+name+"\n")) {
			err = fmt.Errorf("a socket is bound to %s", name)
		}
		return err
	})
}

// Accepted accepts the connection of a client.
func Accepted(t testing.TB, l net.Listener) *net.UnixConn {
	t.Helper()
	Check(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(Patience)))
	conn, err := l.Accept()
	Check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UnixConn)
}
