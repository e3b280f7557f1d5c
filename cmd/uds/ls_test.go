package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/testkit"
)

// wantLines waits until uds ls lists this for an argument: for a moment, a
// process that another test starts has this one's sockets, until it executes
// its program.
func wantLines(t *testing.T, d, at, want string) (got []inspect.Socket) {
	t.Helper()
	testkit.Await(t, func() error {
		got = ls(t, d, at)
		if diff := cmp.Diff(want, lines(got...)); diff != "" {
			return fmt.Errorf("uds ls %s (-want +got):\n%s", at, diff)
		}
		return nil
	})
	return got
}

func TestEachTypeIsListedWithItsClients(t *testing.T) {
	t.Parallel()
	d := dir(t)
	me := os.Getpid()
	for _, name := range []string{d + "/s", "@" + d} {
		for typ := range soTypes {
			at := name + typ
			listener := own(t, "listen "+typ+" "+at)[0]
			c := start(t, d, nil, "connect "+typ+" "+at, "connect "+typ+" "+at)
			want := fmt.Sprintf("datagram %s - open 2: %s\n", at, has(number(listener), me))
			peers := []uint32{number(listener), number(listener)}
			if typ != "datagram" {
				want = fmt.Sprintf("%s %s 0/9 open 2: %s\n", typ, at, has(number(listener), me))
				for i := range peers {
					fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
					check(t, err)
					defer func() { check(t, unix.Close(fd)) }()
					peers[i] = number(fd)
				}
			}
			wantLines(t, d, at, want+connections(has(c.numbers[0], c.Pid()), has(peers[0], me), has(c.numbers[1], c.Pid()), has(peers[1], me)))
		}
	}
}

func TestConnectionsThatWaitAreListed(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := own(t, "listen stream "+d+"/s", "connect stream "+d+"/s", "connect stream "+d+"/s")
	c := start(t, d, nil, "connect stream s")
	shut(t, &s[2]) // it is counted, and has no process any more
	me := os.Getpid()
	wantLines(t, d, "s", fmt.Sprintf("stream %s/s 3/9 open 0: %s\n", d, has(number(s[0]), me))+
		connections(has(number(s[1]), me), "none", has(c.numbers[0], c.Pid()), "none"))
	_, table, _ := run(t, d, "ls", "s")
	wantWords(t, table, "3 of 9 wait, 0 open", "(waits to be accepted)")
}

func TestWhatIsClosedIsListedWhileTheOtherEndIsOpen(t *testing.T) {
	t.Parallel()
	d := dir(t)
	me := os.Getpid()
	s := own(t, "listen stream "+d+"/s", "connect stream "+d+"/s", "accept", "connect stream "+d+"/s", "accept")
	shut(t, &s[1])
	both := connections(has(number(s[3]), me), has(number(s[4]), me), "none", has(number(s[2]), me))
	wantLines(t, d, "s", fmt.Sprintf("stream %s/s 0/9 open 2: %s\n", d, has(number(s[0]), me))+both)
	shut(t, &s[0])
	wantLines(t, d, "s", fmt.Sprintf("stream %s/s - open 2: none\n", d)+both)
	_, table, _ := run(t, d, "ls", "s")
	wantWords(t, table, "(closed)", "(no listener seen)")
}

func TestAnOpenSocketHasItsOtherEnd(t *testing.T) {
	t.Parallel()
	d := dir(t)
	me := os.Getpid()
	for typ, soType := range soTypes {
		pair, err := unix.Socketpair(unix.AF_UNIX, soType|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		defer func() { check(t, unix.Close(pair[0])) }()
		c := testkit.Prepare(t, d, "sleep", "infinity")
		other, otherNumber := os.NewFile(uintptr(pair[1]), ""), number(pair[1])
		c.Cmd.ExtraFiles = []*os.File{other}
		c.Start(t)
		check(t, other.Close())
		for _, path := range []string{fmt.Sprintf("/proc/%d/fd/%d", me, pair[0]), fmt.Sprintf("/proc/%d/fd/3", c.Pid())} {
			ends := []string{has(number(pair[0]), me), has(otherNumber, c.Pid())}
			if otherNumber < number(pair[0]) {
				slices.Reverse(ends)
			}
			wantLines(t, d, path, typ+"  - open 1: none\n"+connections(ends...))
		}
		wantListed(t, ls(t, d, "--pairs"), "", number(pair[0]))
		_, table, _ := run(t, d, "ls", fmt.Sprintf("/proc/%d/fd/3", c.Pid()))
		wantWords(t, table, "pair, "+typ, "ONE END", "THE OTHER", fmt.Sprintf("sleep[%d]", c.Pid()))
		check(t, c.Cmd.Process.Kill())
	}
}

// wantListed checks that an open socket serves an address, or "" for a pair that
// it belongs to, among others.
func wantListed(t *testing.T, all []inspect.Socket, address string, number uint32) {
	t.Helper()
	for _, s := range all {
		if s.Address == address && (s.Server != nil && s.Server.Inode == number ||
			s.Pair() && (s.Connections[0].Client.Inode == number || s.Connections[0].Server.Inode == number)) {
			return
		}
	}
	t.Errorf("no %q with socket %d among %d", address, number, len(all))
}

func TestAnInheritedSocketHasAllItsProcesses(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := own(t, "listen stream "+d+"/s", "connect stream "+d+"/s", "accept")
	p := testkit.Prepare(t, d, "sleep", "infinity")
	for _, fd := range s[:2] {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
		f := os.NewFile(uintptr(fd), "")
		defer func() { check(t, f.Close()) }() // so this process has two descriptors of each
		p.Cmd.ExtraFiles = append(p.Cmd.ExtraFiles, f)
	}
	p.Start(t)
	me, child := os.Getpid(), p.Pid()
	want := fmt.Sprintf("stream %s/s 0/9 open 1: %s\n  %s - %s\n", d, has(number(s[0]), me, child), has(number(s[1]), me, child), has(number(s[2]), me))
	wantLines(t, d, "s", want)
	wantLines(t, d, fmt.Sprintf("/proc/%d/fd/4", child), want)
	_, mermaid, _ := run(t, d, "ls", "--format", "mermaid", "s")
	wantWords(t, mermaid, fmt.Sprintf("sleep[%d]", child), fmt.Sprintf("[%d]", me), `-- "`+d+`/s" -->`)
	check(t, p.Cmd.Process.Kill())
}

func TestSocketsOfOtherNetworkNamespacesAreListed(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "which may enter network namespaces")
	d := dir(t)
	another := func() *syscall.SysProcAttr { return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET} }
	server := start(t, d, another(), "listen stream s", "connect stream s", "listen stream @"+d, "connect stream @"+d)
	client := start(t, d, another(), "connect stream s", "listen stream @"+d, "connect stream @"+d)
	wantLines(t, d, "s", fmt.Sprintf("stream s 2/9 open 0: %s\n", has(server.numbers[0], server.Pid()))+
		connections(has(server.numbers[1], server.Pid()), "none", has(client.numbers[0], client.Pid()), "none"))
	_, inspected, _ := run(t, d, "inspect", "s")
	wantWords(t, inspected, "\n  backlog   2 of 9 connections wait\n  clients   2: ", fmt.Sprintf("[%d]", client.Pid()))
	datagrams := start(t, d, another(), "listen datagram g", "connect datagram g")
	_, inspected, _ = run(t, d, "inspect", "g")
	wantWords(t, inspected, "\n  listener  uid 0", "; nothing waits, or an empty message is next\n  clients   1: ", fmt.Sprintf("[%d]", datagrams.Pid()))
	// An abstract name is one in each namespace.
	both, want := []child{server, client}, ""
	if server.numbers[2] > client.numbers[1] {
		slices.Reverse(both)
	}
	for _, c := range both {
		n := c.numbers[len(c.numbers)-2:]
		want += fmt.Sprintf("stream @%s 1/9 open 0: %s\n  %s - none\n", d, has(n[0], c.Pid()), has(n[1], c.Pid()))
	}
	for i, s := range wantLines(t, d, "@"+d, want) {
		var st unix.Stat_t
		check(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/net", both[i].Pid()), &st))
		if s.Namespace != st.Ino {
			t.Errorf("namespace %d, not %d", s.Namespace, st.Ino)
		}
	}
	// What the server has accepted is in the namespace of the client.
	accepted := start(t, d, another(), "listen stream t", "connect stream t", "accept")
	wantLines(t, d, "t", fmt.Sprintf("stream t 0/9 open 1: %s\n  %s - %s\n",
		has(accepted.numbers[0], accepted.Pid()), has(accepted.numbers[1], accepted.Pid()), has(accepted.numbers[2], accepted.Pid())))
	wantListed(t, ls(t, d), "t", accepted.numbers[0])
}

func TestInspectShowsWhoIsConnected(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := own(t, "listen stream "+d+"/s", "connect stream "+d+"/s", "accept", "listen datagram "+d+"/g")
	c := start(t, d, nil, "connect stream s", "connect stream s", "connect datagram g")
	me, they := fmt.Sprintf("[%d] ", os.Getpid()), fmt.Sprintf("[%d] ", c.Pid())
	inspected := func(path string, words ...string) {
		t.Helper()
		testkit.Await(t, func() error { // see wantLines
			status, stdout, stderr := run(t, d, "inspect", path)
			for _, word := range words {
				if status != 0 || !strings.Contains(stdout, word) {
					return fmt.Errorf("uds inspect %s: exit status %d, without %q: %s%s", path, status, word, stdout, stderr)
				}
			}
			return nil
		})
	}
	inspected("s", "\n  clients   3: ", me, they, " ×2")
	inspected("g", "\n  clients   1: ", they)
	inspected(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s[1]), "\n  between   ", me, " and ")
	shut(t, &s[1])
	inspected("s", "\n  clients   3: ", "(closed)", they, " ×2")
	_, stdout, _ := run(t, d, "inspect", "--format", "json", "s")
	wantWords(t, stdout, `"connections":[{"client":`, `{"client":null,"server":{"inode":`, fmt.Sprintf(`"processes":[{"pid":%d,`, c.Pid()))
}

func TestUsersSeeWhatTheyMay(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "which may become other users")
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	stranger := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}
	s := own(t, "listen stream "+d+"/s")
	check(t, os.Chmod(d+"/s", 0o777))
	c := start(t, d, stranger, "connect stream s")

	got := wantLines(t, d, "s", fmt.Sprintf("stream %s/s 1/9 open 0: %s\n  %s - none\n", d, has(number(s[0]), os.Getpid()), has(c.numbers[0], c.Pid())))
	client := got[0].Connections[0].Client
	if *got[0].Server.UID != 0 || *client.UID != 10003 || client.Processes[0].UID != 10003 {
		t.Errorf("users %d, %d and %d", *got[0].Server.UID, *client.UID, client.Processes[0].UID)
	}

	// The stranger sees its own processes, and of others the user.
	p := testkit.Prepare(t, d, "uds", "ls", "s")
	p.Cmd.SysProcAttr = stranger
	p.Start(t)
	p.WantStatus(t, 0)
	wantWords(t, p.Out.String(), "served by (process not seen) root; 1 of 9 wait", fmt.Sprintf("[%d] 10003", c.Pid()))
	if line := p.Err.String(); strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, "uds: cannot look into ") || !strings.HasSuffix(line, "; run it as root\n") {
		t.Errorf("standard error is %q", line)
	}
}

// In a container, a path is another than here, or none at all.
func TestAPathThatIsMissingHereIsFoundByItsName(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := own(t, "listen stream "+d+"/s")
	check(t, os.Rename(d+"/s", d+"/t"))
	want := fmt.Sprintf("stream %s/s 0/9 open 0: %s\n", d, has(number(s[0]), os.Getpid()))
	wantLines(t, d, d+"/s", want)
	wantLines(t, d, "stream:t", want)
	check(t, os.Symlink("t", d+"/link"))
	wantLines(t, d, "link", want)
	wantLines(t, d, "files:t", want)
}

func TestArgumentsThatAreNotServedAreReported(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := own(t, "listen stream "+d+"/s", "listen stream "+d+"/stale")
	shut(t, &s[1])
	for _, tt := range []struct {
		status int
		args   []string
		err    string
	}{
		{1, []string{"s", "nothing", "stale"}, "uds: no process is seen to serve nothing, stale; uds inspect nothing stale shows why\n"},
		{1, []string{"@nothing"}, "uds: no process is seen to serve @nothing; uds inspect @nothing shows why\n"},
		{1, []string{"."}, "uds: . is a directory, not a socket\n"},
		{2, []string{"--watch", "--format", "dot"}, "uds: ls: --watch --format dot: only table and json can be followed (see uds ls --help)\n"},
	} {
		status, stdout, stderr := run(t, d, append([]string{"ls"}, tt.args...)...)
		if line, rest, _ := strings.Cut(stderr, "\n"); strings.HasPrefix(line, "uds: cannot look into ") {
			stderr = rest // a process of this machine is closed to root
		}
		if status != tt.status || stderr != tt.err || strings.Contains(stdout, d+"/s,") != (tt.args[0] == "s") {
			t.Errorf("uds ls %q: exit status %d, %q, %q", tt.args, status, stdout, stderr)
		}
	}
}

func TestNamesOfOthersReachNoTerminal(t *testing.T) {
	t.Parallel()
	d := dir(t)
	own(t, "listen stream @"+d+"\x1b[2J\"|<b>", "connect stream @"+d+"\x1b[2J\"|<b>")
	for _, args := range [][]string{{}, {"@" + d + "\x1b[2J\"|<b>"}} {
		for _, format := range []string{"table", "json", "mermaid", "dot"} {
			status, stdout, _ := run(t, d, append([]string{"ls", "--format", format}, args...)...)
			if status != 0 || strings.Contains(stdout, "\x1b") || !strings.Contains(stdout, "\x1b"[1:]+`[2J`) {
				t.Errorf("%s %q: exit status %d, %q", format, args, status, stdout)
			}
		}
	}
}

func TestJSONHasTheDocumentedKeys(t *testing.T) {
	t.Parallel()
	d := dir(t)
	own(t, "listen stream "+d+"/s", "connect stream "+d+"/s")
	_, stdout, _ := run(t, d, "ls", "--format", "json", "s")
	wantWords(t, stdout, `{"address":"`+d+`/s","type":"stream","netns":`, `"server":{"inode":`, `"uid":`, `"unread":null,"processes":[{"pid":`,
		`"name":"`, `"container":`, `"waiting":1,"backlog":9,"open":0,"connections":[{"client":{"inode":`, `"unread":0,`, `"server":null}]}`)
}

func TestWatchPrintsWhatAppearsAndEnds(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, format := range []string{"table", "json"} {
		p := testkit.Start(t, d, "uds", "ls", "--watch", "--format", format, d+"/s")
		s := own(t, "listen stream "+d+"/s")
		p.Out.Await(t, 1, "appeared")
		// A child that has the socket too, as any has between fork and exec, is no event.
		twin, err := unix.FcntlInt(uintptr(s[0]), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
		heir := os.NewFile(uintptr(twin), "heir")
		child := exec.CommandContext(t.Context(), "sleep", "600")
		child.ExtraFiles = []*os.File{heir}
		check(t, child.Start())
		c := own(t, "connect stream "+d+"/s")
		p.Out.Await(t, 2, "appeared")
		shut(t, &c[0])
		p.Out.Await(t, 1, "ended")
		check(t, child.Process.Kill())
		_ = child.Wait()
		check(t, heir.Close())
		shut(t, &s[0])
		p.Out.Await(t, 2, "ended")
		p.Signal(t, os.Interrupt)
		p.WantStatus(t, 0)
		check(t, os.Remove(d+"/s"))
		if format == "json" {
			all := decode(t, p.Out.String())
			if len(all) != 4 || len(all[0].Connections) != 0 || len(all[1].Connections) != 1 || all[1].Connections[0].Client.Inode == 0 {
				t.Errorf("%d events: %s", len(all), &p.Out)
			}
			continue
		}
		wantWords(t, p.Out.String(), " appeared stream "+d+"/s client ", "(waits to be accepted)", " ended stream "+d+"/s client ")
	}
}

func TestWatchRedrawsATerminal(t *testing.T) {
	t.Parallel()
	d := dir(t)
	user, tty := terminal(t)
	check(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 100}))
	own(t, "listen stream "+d+"/s")
	p := testkit.Prepare(t, d, "uds", "ls", "--watch", "s")
	p.Cmd.Stdout = tty
	root := os.Geteuid() == 0
	if root {
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}
	}
	p.Start(t)
	var screen testkit.Text
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := user.Read(buf)
			if err != nil {
				return
			}
			_, _ = screen.Write(buf[:n])
		}
	}()
	screen.Await(t, 1, "0 of 9 wait")
	own(t, "connect stream "+d+"/s", "connect stream "+d+"/s", "connect stream "+d+"/s", "connect stream "+d+"/s")
	screen.Await(t, 1, "4 of 9 wait")
	screen.Await(t, 3, "\x1b[H")
	if root {
		screen.Await(t, 3, "\x1b[Hcannot look into ")
	}
	p.Signal(t, os.Interrupt)
	p.WantStatus(t, 0)
	for look := range strings.SplitSeq(screen.String(), "\x1b[H") {
		rows := strings.Split(look, "\r\n")
		if len(rows) > 5 {
			t.Errorf("%d rows on a terminal of 5", len(rows))
		}
		for _, row := range rows {
			if n := len([]rune(strings.TrimSuffix(row, "\x1b[K"))); n > 100 {
				t.Errorf("%d columns on a terminal of 100: %q", n, row)
			}
		}
	}
}

// terminal returns a pseudoterminal, pty(7): the user's end and the program's.
func terminal(t *testing.T) (user, tty *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { _ = user.Close() })
	check(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetUint32(int(user.Fd()), unix.TIOCGPTN)
	check(t, err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { _ = tty.Close() })
	return user, tty
}

func TestHelpFitsOneScreenAndHasThreeExamples(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"inspect", "ls", "tap", "wait"} {
		status, stdout, stderr := run(t, dir(t), command, "--help")
		if n := strings.Count(stdout, "\n"); status != 0 || stderr != "" || n > 30 || strings.Count(stdout, "uds "+command) != 3+1 { // and the usage
			t.Errorf("exit status %d, %d lines:\n%s%s", status, n, stdout, stderr)
		}
	}
}
