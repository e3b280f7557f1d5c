// Package testkit holds what the tests of package uds and of package sock share.
// They cannot use the package of that name in the other module: this module needs
// nothing but golang.org/x/sys.
package testkit

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is the longest wait for an event. It measures nothing, so it is long
// enough for a slow machine.
const Patience = 3 * time.Minute

// Check ends the test if there is an error.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Stale leaves the file of a socket that no process serves.
func Stale(t testing.TB, path string) {
	t.Helper()
	syscall.ForkLock.RLock() // otherwise a child that is being started has a copy of the socket
	defer syscall.ForkLock.RUnlock()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	Check(t, err)
	l.SetUnlinkOnClose(false)
	Check(t, l.Close())
}

// Err returns the error of a call that returns something else too.
func Err[T any](_ T, err error) error { return err }

// Dir makes a directory that other users can enter. Its path is short, because
// sun_path is.
func Dir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	Check(t, err)
	t.Cleanup(func() { Check(t, os.RemoveAll(d)) })
	Check(t, os.Chmod(d, 0o755))
	return d
}

// WantFiles checks that a directory contains these files, sorted, and no others.
func WantFiles(t testing.TB, d string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(d)
	Check(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, not %q", got, want)
	}
}

// WantError checks that err is target, if that is not nil, and contains all
// words.
func WantError(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if err == nil || target != nil && !errors.Is(err, target) {
		t.Errorf("the error is %v, not %v", err, target)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not contain %q", err, w)
		}
	}
}

// Await polls, for a condition that no event reports, until poll returns no error.
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

// Go runs f n times at once and waits until all have returned.
func Go(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Add(1)
		go func() {
			defer all.Done()
			f(i)
		}()
	}
	all.Wait()
}

// Count returns few, or many if STRESS is set, as `make stress` does.
func Count(few, many int) int {
	if os.Getenv("STRESS") != "" {
		return many
	}
	return few
}
