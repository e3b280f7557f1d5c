//go:build linux

package sock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// needUmaskOfAThread skips the test if a thread cannot have a umask of its own.
func needUmaskOfAThread(t *testing.T) {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		result <- unix.Unshare(unix.CLONE_FS)
	}()
	if err := <-result; err != nil {
		testkit.Missing(t, fmt.Sprintf("unshare(2), CLONE_FS (%v)", err), "run the tests outside of containers")
	}
}

// A client that waits for the name with inotify(7) runs as soon as bind(2) has
// made it. The mode must be right then. The socket may not listen yet, and even
// bind may not have ended, so NotThereYet has to know the error.
func TestF58ClientsThatConnectWhenTheNameAppears(t *testing.T) {
	t.Parallel()
	needUmaskOfAThread(t)
	rounds, at := testkit.Count(100, 1000), map[string]int{}
	for typ := range types {
		t.Run(string(typ), func(t *testing.T) {
			d := dir(t)
			a := sock.Addr{Type: typ, Path: d + "/s"}
			watch := func(event uint32, flags int) int {
				fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | flags)
				check(t, err)
				t.Cleanup(func() { check(t, unix.Close(fd)) })
				check(t, testkit.Err(unix.InotifyAddWatch(fd, d, event)))
				return fd
			}
			names, modes, buf := watch(unix.IN_CREATE, 0), watch(unix.IN_ATTRIB, unix.IN_NONBLOCK), make([]byte, 4096)
			server := start(t, 0, "listen", a.String(), "666", "077")
			attempts := make(chan [2]string)
			go asStranger(func() {
				defer close(attempts)
				for range rounds {
					for n := 0; !bytes.Contains(buf[:n], []byte("\x00s\x00")); {
						var err error
						if n, err = unix.Read(names, buf); err != nil {
							return
						}
					}
					first, last := attempt(a), "not there yet"
					for last == "not there yet" {
						last = attempt(a)
					}
					attempts <- [2]string{first, last}
				}
			})
			for range rounds {
				server.Do(t)
				got := <-attempts
				if got[0] != "connected" && got[0] != "not there yet" || got[1] != "connected" {
					t.Fatalf("the first attempt: %s; the last one: %s", got[0], got[1])
				}
				at[got[0]]++
				server.Do(t)
			}
			if n, err := unix.Read(modes, buf); err != unix.EAGAIN {
				t.Errorf("the mode was set after the name appeared: %q, %v", buf[:max(n, 0)], err)
			}
		})
	}
	testkit.ReportFault(t, "F58", 3*rounds,
		"a client of another user waits for the name of a socket of each type with inotify(7), and connects at once; the server has umask 077 and mode 0666",
		fmt.Sprintf("no permission was ever missing; %d connected at the first attempt, %d were refused because bind(2) or listen(2) had not ended, which uds.NotThereYet and --retry wait for: all of those connected", at["connected"], at["not there yet"]))
}

func attempt(a sock.Addr) string {
	conn, err := sock.Dial(context.Background(), a, sock.DialConfig{})
	switch {
	case err == nil:
		_ = conn.Close()
		return "connected"
	case errors.Is(err, unix.ECONNREFUSED) && sock.NotThereYet(err):
		return "not there yet"
	default:
		return err.Error()
	}
}

// Other servers bind first and set the mode and the owner afterwards. The same
// denial is an error for good when the file is older.
func TestF58PermissionThatComesLaterIsWaitedForAndNoLonger(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, sock.ListenConfig{Mode: testkit.ClosedMode()}, a)
	// The file stays young until the stranger has been denied, however slow this
	// machine is.
	var denied error
	for !sock.NotThereYet(denied) {
		check(t, os.Chmod(a.Path, testkit.ClosedMode()))
		asStranger(func() { denied = dialError(a, sock.DialConfig{}) })
		wantError(t, denied, unix.EACCES)
	}
	testkit.Await(t, func() error {
		asStranger(func() { denied = dialError(a, sock.DialConfig{}) })
		if sock.NotThereYet(denied) {
			return denied
		}
		return nil
	})
	wantError(t, denied, unix.EACCES, "EACCES", a.Path+" denies this process permission to connect to it")
	check(t, os.Chmod(a.Path, 0o666))
	asStranger(func() { check(t, dialError(a, sock.DialConfig{})) })
}

// The lock of another user's server that was killed cannot be opened. It is
// removed if the socket may be replaced, and only if no server answers.
func TestF62LockOfAnotherUsersServer(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, tt := range []struct {
		name          string
		first, second int
		dirMode       uint32
		kill          bool
		words         string // of the error; "" if the second server starts
	}{
		{"a user after root", 0, testkit.Stranger, 0o777, true, ""},
		{"root after a user", testkit.Stranger, 0, 0o777, true, ""},
		{"root after a user in a sticky directory", testkit.Stranger, 0, 0o1777, true, ""}, // fs.protected_regular
		{"a user after root in a sticky directory", 0, testkit.Stranger, 0o1777, true, ".s.lock; while no server runs at "},
		{"a user beside root", 0, testkit.Stranger, 0o777, false, "a server answers on "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			check(t, unix.Chmod(d, tt.dirMode))
			first := start(t, tt.first, "listen", "stream:"+d+"/s", "666", "022")
			first.Do(t)
			if tt.kill {
				first.Kill(t)
			}
			same := keeps(t, d)
			second := start(t, tt.second, "listen", "stream:"+d+"/s", "666", "022")
			if tt.words == "" {
				second.Do(t)
				second.End(t)
				wantFiles(t, d)
				return
			}
			second.Cue(t)
			wantError(t, errors.New(second.Line(t)), nil, tt.words, "remove it: its mode is 0600, of user "+strconv.Itoa(tt.first))
			same()
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		testkit.Missing(t, "root, to be two users", "run the tests as root")
	}
}

// The same for the control socket of a takeover, which is for one user alone.
func TestF62ControlSocketOfAnotherUsersServer(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	first, second := start(t, 0, "hand", "stream:"+d+"/s"), start(t, testkit.Stranger, "hand", "stream:"+d+"/s")
	first.Do(t)
	second.Cue(t)
	wantError(t, errors.New(second.Line(t)), nil, d+"/.s.takeover denies this process permission to connect")
	first.Kill(t)
	second.Do(t)
	second.End(t)
	wantFiles(t, d)
}
