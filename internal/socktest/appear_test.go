package socktest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
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
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			d := dir(t)
			check(t, os.Chmod(d, 0o777)) // the library's client binds nothing, but may search
			a := sock.Addr{Type: typ, Path: d + "/s"}
			changes := testkit.WatchModes(t, d)
			server := start(t, 0, nil, "appear", a.String(), "666", "077")
			client := start(t, stranger, nil, "await", d, a.String())
			for range rounds {
				if got := client.line(t); got != "watching" {
					t.Fatal(got)
				}
				for _, state := range []string{"there", "gone"} {
					_, err := fmt.Fprintln(server.in)
					check(t, err)
					if state == "gone" {
						break // the client reads on while the server closes
					}
					if o := server.outcome(t); o.Err != "" {
						t.Fatal(o.Err)
					}
					first := client.line(t)
					at[first]++
					if first != "connected" && first != "not there yet" {
						t.Fatalf("the first attempt: %s", first)
					}
					if last := client.line(t); last != "connected" {
						t.Fatalf("the last attempt: %s", last)
					}
				}
				if o := server.outcome(t); o.Err != "" {
					t.Fatal(o.Err)
				}
				_, err := fmt.Fprintln(client.in)
				check(t, err)
			}
			if names := changes(); names != nil {
				t.Errorf("files whose mode was set after they appeared: %q", names)
			}
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F58",
		Done:    "a client of another user waits for the name of a socket of each type with inotify(7), and connects at once; the server has umask 077 and mode 0666",
		Count:   3 * rounds,
		Outcome: fmt.Sprintf("no permission was ever missing; %d connected at the first attempt, %d were refused because bind(2) or listen(2) had not ended, which uds.NotThereYet and --retry wait for: all of those connected", at["connected"], at["not there yet"]),
	})
}

// appearRole listens at each cue, and closes at the next.
func appearRole(args []string) error {
	address, mode := mustParse(args[0]), octal(args[1])
	unix.Umask(int(octal(args[2])))
	for cue := bufio.NewScanner(os.Stdin); cue.Scan(); {
		s, err := sock.ListenConfig{Mode: mode}.Listen(address)
		report(err)
		if err != nil {
			return err
		}
		cue.Scan()
		report(s.Close())
	}
	return nil
}

// awaitRole waits in a directory for the name of a socket, and connects when it
// appears; again at each cue. It prints the result of its first attempt, and of
// its last.
func awaitRole(args []string) error {
	address := mustParse(args[1])
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(watch, args[0], unix.IN_CREATE); err != nil {
		return err
	}
	for cue := bufio.NewScanner(os.Stdin); ; {
		fmt.Println("watching")
		for buf, n := make([]byte, 4096), 0; !bytes.Contains(buf[:n], []byte("\x00s\x00")); {
			if n, err = unix.Read(watch, buf); err != nil {
				return err
			}
			if n == 0 {
				return errors.New("inotify ended")
			}
		}
		fmt.Println(attempt(address))
		last := attempt(address)
		for last == "not there yet" {
			last = attempt(address)
		}
		fmt.Println(last)
		if !cue.Scan() {
			return nil
		}
	}
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

// Other servers bind first and set the mode and the owner afterwards.
func TestF58PermissionThatComesLaterIsWaitedForAndNoLonger(t *testing.T) {
	t.Parallel()
	d := dir(t)
	a := stream(d + "/s")
	s := listen(t, sock.ListenConfig{Mode: closedMode()}, a)
	client := start(t, stranger, nil, "until", a.String())
	ended := make(chan struct{})
	result := make(chan string)
	go func() {
		first := client.line(t)
		close(ended)
		result <- first + ", " + client.line(t)
	}()
	// The file stays young until the client has been denied, however slow this
	// machine is.
	for waiting := true; waiting; {
		check(t, os.Chmod(d+"/s", closedMode()))
		select {
		case <-ended:
			waiting = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	check(t, os.Chmod(d+"/s", 0o666))
	if got := <-result; got != "denied, connected" {
		t.Error(got)
	}
	client.end(t)

	// The same denial is an error for good when the file is older.
	check(t, os.Chmod(d+"/s", closedMode()))
	client = start(t, stranger, nil, "until", a.String())
	client.line(t)
	if got := client.line(t); got == "connected" {
		t.Error(got)
	} else {
		wantWords(t, got, "EACCES", a.Path+" denies this process permission to connect to it")
	}
	client.end(t)
	check(t, s.Close())
}

// untilRole dials until that works, or fails for good. It prints the first
// denial, and the end.
func untilRole(args []string) error {
	for denied := false; ; {
		conn, err := sock.Dial(context.Background(), mustParse(args[0]), sock.DialConfig{})
		if errors.Is(err, unix.EACCES) && !denied {
			denied = true
			fmt.Println("denied")
		}
		switch {
		case err == nil:
			fmt.Println("connected")
			return conn.Close()
		case !sock.NotThereYet(err):
			fmt.Println(err)
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// The lock of another user's server that was killed cannot be opened. It is
// removed if the socket may be replaced, and only if no server answers.
func TestF62LockOfAnotherUsersServer(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to be two users")
	for _, tt := range []struct {
		name          string
		first, second int
		dirMode       uint32
		kill          bool
		words         string // of the error; "" if the second server starts
	}{
		{"a user after root", 0, stranger, 0o777, true, ""},
		{"root after a user", stranger, 0, 0o777, true, ""},
		{"root after a user in a sticky directory", stranger, 0, 0o1777, true, ""}, // fs.protected_regular
		{"a user after root in a sticky directory", 0, stranger, 0o1777, true, ".s.lock; while no server runs at "},
		{"a user beside root", 0, stranger, 0o777, false, "a server answers on "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			check(t, unix.Chmod(d, tt.dirMode))
			first := start(t, tt.first, nil, "listen", "stream:"+d+"/s", "666", "022")
			if o := first.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			if tt.kill {
				check(t, first.cmd.Process.Kill())
				_ = first.cmd.Wait()
			}
			lock := take(t, beside(d+"/s", ".lock"))
			second := start(t, tt.second, nil, "listen", "stream:"+d+"/s", "666", "022")
			o := second.outcome(t)
			if tt.words == "" {
				if o.Err != "" {
					t.Fatal(o.Err)
				}
				second.end(t)
				if names := ls(t, d); names != nil {
					t.Errorf("left behind: %v", names)
				}
				return
			}
			wantWords(t, o.Err, tt.words, "remove it: its mode is 0600, of user "+strconv.Itoa(tt.first))
			if now := take(t, beside(d+"/s", ".lock")); now != lock {
				t.Errorf("the lock was touched: %v, %v", lock, now)
			}
		})
	}
}

// The same for the control socket of a takeover, which is for one user alone.
func TestF62ControlSocketOfAnotherUsersServer(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to be two users")
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	first := start(t, 0, nil, "hold", "stream:"+d+"/s")
	if o := first.outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	o := start(t, stranger, nil, "hold", "stream:"+d+"/s").outcome(t)
	wantWords(t, o.Err, d+"/.s.takeover denies this process permission to connect")
	check(t, first.cmd.Process.Kill())
	_ = first.cmd.Wait()
	second := start(t, stranger, nil, "hold", "stream:"+d+"/s")
	if o := second.outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	second.end(t)
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}
