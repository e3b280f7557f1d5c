package main_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// A victim dies at one of its system calls: at the nth of all its threads
// together, counted from the call of [victim.arm]. SIGKILL arrives as it
// enters the call, so n-1 calls happened and the nth did not.
//
// "strace -f -e inject=all:signal=KILL:when=N" counts the calls of each thread
// separately. It is random on which thread a goroutine runs, so no N would
// name a certain call, and no series of them all calls. So this code traces by
// itself, ptrace(2), and leaves out the calls of [chance]. Then the count
// differs only by a few calls from run to run.
type victim struct {
	process *process
	family  bool         // the processes that it has started die with it
	left    atomic.Int64 // calls until its death; 0: it need not die, or is being killed
	armed   bool
	calls   atomic.Int64
	state   unix.WaitStatus // once it has ended
}

// chance are the calls by which the threads of Go's runtime start, wait for
// each other, and are preempted. Their number is random, and they have no
// effect outside of the process.
var chance = []uint64{
	unix.SYS_CLONE, unix.SYS_EPOLL_PWAIT, unix.SYS_FUTEX, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_MADVISE, unix.SYS_NANOSLEEP,
	unix.SYS_RESTART_SYSCALL, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_YIELD,
	unix.SYS_SIGALTSTACK, unix.SYS_TGKILL,
}

// launchVictim starts a program that dies at its nth call; 0: at no call,
// before arm.
func launchVictim(t *testing.T, n int64, d string, args ...string) *victim {
	t.Helper()
	return launchFamily(t, false, n, d, args...)
}

// launchFamily starts a program that dies with all that it has started if family
// is true.
func launchFamily(t *testing.T, family bool, n int64, d string, args ...string) *victim {
	t.Helper()
	v := &victim{process: testkit.Prepare(t, d, args...), family: family}
	// Its own process group, so that waiting for it does not wait for another
	// process.
	v.process.Cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	v.arm(n)
	started := make(chan error)
	go func() {
		defer close(v.process.Ended)
		runtime.LockOSThread() // only the thread that started it may trace it
		defer runtime.UnlockOSThread()
		err := v.process.Cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if err := v.trace(); err != nil {
			t.Errorf("trace %v: %v", v.process.Cmd.Args, err)
		}
		_ = v.process.Cmd.Wait() // trace has its state; this handles its output
	}()
	check(t, <-started)
	t.Cleanup(func() { <-v.process.Ended })
	return v
}

// arm makes the victim die at its nth call from now on; 0: at no call.
func (v *victim) arm(n int64) {
	v.armed = n > 0
	v.left.Store(n)
	v.calls.Store(0)
}

// spare lets the victim live, or reports that it has been killed.
func (v *victim) spare() bool { return v.left.Swap(0) > 0 || !v.armed }

// trace runs the victim to its end.
func (v *victim) trace() error {
	pid := v.process.Pid()
	for first := true; ; first = false {
		var state unix.WaitStatus
		tid, err := unix.Wait4(-pid, &state, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECHILD { // all threads have ended
			return nil
		}
		if err != nil {
			return os.NewSyscallError("wait4", err)
		}
		if !state.Stopped() {
			if tid == pid {
				v.state = state
			}
			continue
		}
		if first {
			const options = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE
			if err := unix.PtraceSetOptions(pid, options); err != nil {
				return os.NewSyscallError("ptrace", err)
			}
		}
		deliver := 0
		switch s := state.StopSignal(); s {
		case unix.SIGTRAP | 0x80: // entering or leaving a system call
			if counts(tid) {
				v.calls.Add(1)
				if v.left.Load() > 0 && v.left.Add(-1) == 0 {
					if v.family {
						testkit.KillChildren(pid)
					}
					_ = v.process.Cmd.Process.Kill()
				}
			}
		case unix.SIGTRAP, unix.SIGSTOP: // exec, clone, a new thread
		default:
			deliver = int(s)
		}
		_ = unix.PtraceSyscall(tid, deliver) // it may be dead
	}
}

// counts reports whether a thread enters a call that is not in [chance].
func counts(tid int) bool {
	var info struct {
		op uint8
		_  [23]byte
		nr uint64
		_  [56]byte
	}
	const entry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	return errno == 0 && info.op == entry && !slices.Contains(chance, info.nr)
}

// exit waits for the end and returns the exit status, -1 after a signal.
func (v *victim) exit(t testing.TB) int {
	t.Helper()
	v.process.Status(t)
	return v.state.ExitStatus()
}

// lives waits until the victim has written words n times, and then lets it
// live. It returns earlier if the victim dies.
func (v *victim) lives(n int, words string) bool {
	if v.process.Err.Reaches(n, words, v.process.Ended) && v.spare() {
		return true
	}
	<-v.process.Ended
	return false
}

// killed reports whether the victim has ended.
func (v *victim) killed() bool {
	select {
	case <-v.process.Ended:
		return true
	default:
		return false
	}
}

// A death is one try: the victim dies at call n, or reaches its goal before.
// calls is the number of calls until its goal.
type death func(t *testing.T, n int64) (calls int64, died bool)

// With CRASH=all in the environment, as set by `make crash`, deaths tries all
// calls from the first until the victim reaches its goal. Otherwise it tries a
// sample of this many calls, spread over them.
func deaths(t *testing.T, sample int64, try death) (kills, calls int64) {
	const workers = 4
	var (
		mu         sync.Mutex
		next       int64
		over       bool
		violations int
	)
	calls, _ = try(t, 0)
	if t.Failed() {
		t.Fatal("it fails without a death, too")
	}
	all := os.Getenv("CRASH") == "all"
	offset := rand.New(rand.NewPCG(testkit.Seed(t), 0)).Int64N(max(calls/sample, 1))
	var pool sync.WaitGroup
	for range workers {
		pool.Go(func() {
			for {
				mu.Lock()
				next++
				n := next
				if !all {
					n = 1 + offset + (n-1)*calls/sample
				}
				stop := over || all && n > 2*calls || !all && next > sample
				mu.Unlock()
				if stop {
					return
				}
				t.Run(fmt.Sprint("call ", n), func(t *testing.T) {
					died := true
					defer func() { // after a Fatal, too
						mu.Lock()
						defer mu.Unlock()
						if died {
							kills++
						} else {
							over = all
						}
						if t.Failed() {
							violations++
						}
					}()
					_, died = try(t, n)
				})
			}
		})
	}
	pool.Wait()
	if all { // to standard output, also for tests that pass
		fmt.Printf("%s: killed at %d system calls, %d violations\n", t.Name(), kills, violations)
	}
	return kills, calls
}

// foreign are the files in the servers' directory that do not belong to them:
// a file, and the socket of another program that is running.
type foreign struct {
	d      string
	before []unix.Stat_t
}

var foreigners = []string{"file", "live"}

func putForeign(t *testing.T, d string) foreign {
	t.Helper()
	check(t, os.WriteFile(d+"/file", []byte("not yours"), 0o640))
	l, err := net.Listen("unix", d+"/live")
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	f := foreign{d: d}
	f.before = f.stat(t)
	return f
}

func (f foreign) stat(t *testing.T) []unix.Stat_t {
	t.Helper()
	all := make([]unix.Stat_t, len(foreigners))
	for i, name := range foreigners {
		check(t, unix.Lstat(f.d+"/"+name, &all[i]))
		all[i].Atim = unix.Timespec{}
	}
	return all
}

// alone checks that only the foreign files are there, unchanged.
func (f foreign) alone(t *testing.T) {
	t.Helper()
	wantFiles(t, f.d, foreigners...)
	if t.Failed() {
		return
	}
	if now := f.stat(t); !slices.Equal(now, f.before) {
		t.Errorf("foreign files are %+v, were %+v", now, f.before)
	}
	if text, err := os.ReadFile(f.d + "/file"); err != nil || string(text) != "not yours" {
		t.Errorf("the foreign file holds %q, %v", text, err)
	}
	conn, err := net.Dial("unix", f.d+"/live")
	check(t, err)
	check(t, conn.Close())
}

// everywhere are addresses of all kinds, as [exchange] knows them.
var everywhere = []string{"--listen", "stream:s", "--listen", "seqpacket:q", "--listen", "datagram:d", "--listen", "files:f"}

// wantServed waits until every address answers; until then it may refuse.
func wantServed(t *testing.T, d string) {
	t.Helper()
	for kind := range 3 {
		testkit.Await(t, func() error { return exchange(d, kind, message, time.Now().Add(patience)) })
	}
	late := patience.String()
	start(t, d, testkit.Plain(t, "client"), "send-file", "--retry", late, "--timeout", late, "--connect", "files:f", "file").WantStatus(t, 0)
}

// end ends a server, which must leave only the foreign files.
func (f foreign) end(t *testing.T, p *process, exit func(testing.TB) int) {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	if status := exit(t); status != 0 {
		t.Errorf("exit status %d after:\n%s", status, &p.Err)
	}
	f.alone(t)
}

func TestF38DeathAtAnySystemCallOfAStart(t *testing.T) {
	t.Parallel()
	var kills, calls int64
	for _, tt := range []struct {
		name  string
		stale bool
		more  []string
	}{
		{"plain", false, nil},
		{"where another was killed", true, nil},
		{"with takeover", false, []string{"--takeover"}},
		{"with takeover where another was killed", true, []string{"--takeover"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := slices.Concat([]string{testkit.Plain(t, "server"), "--log-format", "plain"}, tt.more, everywhere)
			k, c := deaths(t, 6, func(t *testing.T, n int64) (int64, bool) {
				d := dir(t)
				f := putForeign(t, d)
				if tt.stale {
					p := serving(t, start(t, d, args...))
					p.Signal(t, syscall.SIGKILL)
					<-p.Ended
				}
				v := launchVictim(t, n, d, args...)
				if v.lives(1, "waiting for a ") {
					calls := v.calls.Load()
					wantServed(t, d)
					f.end(t, v.process, v.exit)
					return calls, false
				}
				if v.state.Signal() != unix.SIGKILL {
					t.Fatalf("it ended by itself, %v: %s", v.state, &v.process.Err)
				}
				p := serving(t, start(t, d, args...))
				wantServed(t, d)
				f.end(t, p, p.Status)
				return n, true
			})
			kills, calls = kills+k, calls+c
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F38", Done: "a server on addresses of all kinds killed at system calls of its start, with and without `--takeover`, in a fresh directory and where another was killed; at every one: `make crash`", Count: 24,
		Outcome: fmt.Sprintf("killed at %d of %d calls: each time the next start served on all addresses, nothing foreign was touched, and nothing was left after its end", kills, calls),
	})
}

// A handover is the state of a server when a successor starts: a connection in
// use, and a datagram client that does not read its replies.
type handover struct {
	foreign
	args []string
	conn *net.UnixConn
	mute *net.UnixConn
}

const unread = 15

func newHandover(t *testing.T) *handover {
	t.Helper()
	args := append([]string{testkit.Plain(t, "server"), "--takeover", "--drain-timeout", "300ms", "--log-format", "plain"}, everywhere...)
	d := dir(t)
	return &handover{foreign: putForeign(t, d), args: args}
}

// use uses the running server.
func (h *handover) use(t *testing.T) {
	t.Helper()
	h.conn = connect(t, "unix", h.d+"/s")
	check(t, echoed(h.conn, "before"))
	own := &net.UnixAddr{Name: "@" + h.d + " mute", Net: "unixgram"}
	var err error
	h.mute, err = net.DialUnix("unixgram", own, &net.UnixAddr{Name: h.d + "/d", Net: "unixgram"})
	check(t, err)
	t.Cleanup(func() { _ = h.mute.Close() })
	check(t, h.mute.SetWriteDeadline(time.Now().Add(patience)))
	for i := range unread {
		_, err := fmt.Fprintf(h.mute, "unread %d", i)
		check(t, err)
	}
	check(t, exchange(h.d, 2, "behind them", time.Now().Add(patience))) // they have been received
}

// wantRight checks the accepted clients. The connection echoes, or has ended
// if its server may have ended. The replies are the first ones in their order.
func (h *handover) wantRight(t *testing.T, gone bool) {
	t.Helper()
	told := []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE}
	err := echoed(h.conn, "after")
	if err != nil && !(gone && slices.ContainsFunc(told, func(end error) bool { return errors.Is(err, end) })) {
		t.Errorf("the connection: %v", err)
	}
	check(t, h.mute.SetReadDeadline(time.Now().Add(time.Millisecond))) // reads the waiting replies, and no more
	for i := range unread {
		got := make([]byte, 100)
		n, err := h.mute.Read(got)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || string(got[:n]) != fmt.Sprintf("unread %d", i) {
			t.Errorf("reply %d is %q, %v", i, got[:n], err)
			break
		}
	}
	check(t, errors.Join(h.conn.Close(), h.mute.Close()))
}

// yielded waits until a server whose successor was killed serves, or has ended
// because the successor had its sockets. The successor's log does not tell, as its
// last lines may be lost with it.
func yielded(p *process, d string) bool {
	for {
		if exchange(d, 0, message, time.Now().Add(patience)) == nil {
			return false
		}
		select {
		case <-p.Ended:
			return true
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestF37DeathAtAnySystemCallOfATakeover(t *testing.T) {
	t.Parallel()
	const taken = "took over "
	addresses := len(everywhere) / 2
	var outcome []string
	t.Run("the successor", func(t *testing.T) {
		kills, calls := deaths(t, 12, func(t *testing.T, n int64) (int64, bool) {
			h := newHandover(t)
			old := serving(t, start(t, h.d, h.args...))
			h.use(t)
			v := launchVictim(t, n, h.d, h.args...)
			v.lives(addresses, taken)
			calls := v.calls.Load()
			through := strings.Count(v.process.Err.String(), taken) >= addresses || v.killed() && yielded(old, h.d)
			if !through { // nothing has changed: the old server serves
				if v.state.Signal() != unix.SIGKILL {
					t.Errorf("it ended by itself, %v", v.state)
				}
				wantServed(t, h.d)
				h.wantRight(t, false)
				if t.Failed() {
					t.Logf("killed at call %d\nold:\n%s\nsuccessor:\n%s", n, &old.Err, &v.process.Err)
					return n, true
				}
				v = launchVictim(t, 0, h.d, h.args...) // hands over to another successor
				v.lives(addresses, taken)
			}
			select {
			case <-v.process.Ended: // after it served everything, and had logged that, though the old server may not know yet
				p := old
				if !old.Err.Reaches(1, "has ended; continuing to serve", old.Ended) {
					old.WantStatus(t, 0)
					p = serving(t, start(t, h.d, h.args...))
				}
				wantServed(t, h.d)
				h.wantRight(t, p != old)
				h.end(t, p, p.Status)
			default:
				wantServed(t, h.d)
				if through {
					h.wantRight(t, true)
				}
				old.WantStatus(t, 0)
				h.end(t, v.process, v.exit)
			}
			return calls, !through
		})
		outcome = append(outcome, fmt.Sprintf("the successor killed at %d of %d calls: the old one served on, kept its connection, and handed over to another", kills, calls))
	})
	t.Run("the old server", func(t *testing.T) {
		var gaveUp atomic.Int64
		kills, calls := deaths(t, 12, func(t *testing.T, n int64) (int64, bool) {
			h := newHandover(t)
			v := launchVictim(t, 0, h.d, h.args...)
			if !v.lives(1, "waiting for a ") {
				t.Fatalf("it ended by itself: %s", &v.process.Err)
			}
			h.use(t)
			v.arm(n)
			successor := start(t, h.d, h.args...)
			status := v.exit(t)
			calls := v.calls.Load()
			if status != 0 && v.state.Signal() != unix.SIGKILL {
				t.Errorf("exit status %d:\n%s", status, &v.process.Err)
			}
			testkit.Await(t, func() error {
				select {
				case <-successor.Ended: // because its server died
					gaveUp.Add(1)
					successor = serving(t, start(t, h.d, h.args...))
				default:
				}
				return exchange(h.d, 0, message, time.Now().Add(patience))
			})
			wantServed(t, h.d)
			h.wantRight(t, true)
			if t.Failed() {
				t.Logf("killed at call %d\nold:\n%s\nsuccessor:\n%s", n, &v.process.Err, &successor.Err)
				return n, true
			}
			h.end(t, successor, successor.Status)
			return calls, status != 0
		})
		outcome = append(outcome, fmt.Sprintf("the old one at %d of %d: the successor served, or ended (%d) and the next one did", kills, calls, gaveUp.Load()))
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F37", Done: "a takeover with a connection in use and a datagram client that does not read its replies; successor and old server killed at system calls of it; at every one: `make crash`", Count: 24,
		Outcome: strings.Join(outcome, "; ") + "; all addresses within 2 s",
	})
}

// transfer returns the input of a client, in two parts.
func transfer() (first, rest string) {
	var b strings.Builder
	for i := range 8000 {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return "the first line\n", b.String()
}

func TestDeathAtAnySystemCallOfAClient(t *testing.T) {
	t.Parallel()
	first, rest := transfer()
	deaths(t, 12, func(t *testing.T, n int64) (int64, bool) {
		d := dir(t)
		p := serving(t, start(t, d, testkit.Plain(t, "server"), "--chunk", "4096", "--admin", "admin"))
		v := launchVictim(t, 0, d, testkit.Plain(t, "client"), "--retry", "60s", "--chunk", "4096", "-")
		_, err := io.WriteString(v.process.In, first)
		check(t, err)
		v.process.Out.Await(t, 1, first)
		v.arm(n)
		_, _ = io.WriteString(v.process.In, rest) // it may be dead
		_ = v.process.In.Close()
		exit := v.exit(t)
		calls := v.calls.Load()
		if back := v.process.Out.String(); !strings.HasPrefix(first+rest, back) || exit == 0 && back != first+rest {
			t.Errorf("exit status %d, received %d of %d bytes", exit, len(back), len(first+rest))
		}
		if exit != 0 && v.state.Signal() != unix.SIGKILL {
			t.Errorf("exit status %d: %s", exit, &v.process.Err)
		}
		awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == 0 })
		gotBack(t, start(t, d, testkit.Plain(t, "client")))
		p.Stop(t)
		return calls, exit != 0
	})
}

func TestDeathAtAnySystemCallOfATransfersServer(t *testing.T) {
	t.Parallel()
	first, rest := transfer()
	deaths(t, 12, func(t *testing.T, n int64) (int64, bool) {
		d := dir(t)
		args := []string{testkit.Plain(t, "server"), "--chunk", "4096"}
		v := launchVictim(t, 0, d, args...)
		v.lives(1, "waiting for a ")
		client := start(t, d, testkit.Plain(t, "client"), "--retry", "60s", "--chunk", "4096", "-")
		_, err := io.WriteString(client.In, first)
		check(t, err)
		client.Out.Await(t, 1, first)
		v.arm(n)
		written := make(chan error)
		go func() {
			_, err := io.WriteString(client.In, rest)
			written <- errors.Join(err, client.In.Close())
		}()
		select {
		case <-client.Ended:
		case <-v.process.Ended:
		}
		died := !v.spare()
		if died {
			<-v.process.Ended
			p := serving(t, start(t, d, args...))
			defer p.Stop(t)
		}
		calls := v.calls.Load()
		check(t, <-written)
		client.WantStatus(t, 0)
		if out := client.Out.String(); out != first+rest {
			t.Errorf("received %d of %d bytes, or others", len(out), len(first+rest))
		}
		if !died {
			v.process.Signal(t, syscall.SIGTERM)
			if status := v.exit(t); status != 0 {
				t.Errorf("exit status %d", status)
			}
			wantFiles(t, d)
		}
		return calls, died
	})
}

// A tapped socket is that of a foreign server, which gives nothing back by itself.
type tappedSocket struct {
	d    string
	file unix.Stat_t
}

func newTappedSocket(t *testing.T) tappedSocket {
	t.Helper()
	s := tappedSocket{d: dir(t)}
	l, err := net.Listen("unix", s.d+"/s")
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	check(t, unix.Lstat(s.d+"/s", &s.file))
	return s
}

// hasName returns an error if the name does not lead to the socket.
func (s tappedSocket) hasName() error {
	var now unix.Stat_t
	if err := unix.Lstat(s.d+"/s", &now); err != nil || now.Ino != s.file.Ino {
		return errors.Join(fmt.Errorf("the name leads to inode %d, not %d", now.Ino, s.file.Ino), err)
	}
	conn, err := net.Dial("unix", s.d+"/s")
	if err == nil {
		err = conn.Close()
	}
	return err
}

// undone runs --undo, after which only the socket is there.
func (s tappedSocket) undone(t *testing.T) {
	t.Helper()
	status, _, stderr := run(t, s.d, "", testkit.Plain(t, "uds"), "tap", "--undo", "s")
	if err := s.hasName(); status != 0 || err != nil {
		t.Errorf("exit status %d, %v: %s", status, err, stderr)
	}
	wantFiles(t, s.d, "s")
}

func TestF65DeathAtAnySystemCallOfATap(t *testing.T) {
	t.Parallel()
	var outcome []string
	taps := func(name, after string, family bool, dead func(*testing.T, tappedSocket)) {
		t.Run(name, func(t *testing.T) {
			kills, calls := deaths(t, 12, func(t *testing.T, n int64) (int64, bool) {
				s := newTappedSocket(t)
				v := launchFamily(t, family, n, s.d, testkit.Plain(t, "uds"), "tap", "s")
				if v.process.Err.Reaches(1, "waiting for a ", v.process.Ended) {
					if conn, err := net.Dial("unix", s.d+"/s"); err == nil { // otherwise it has died
						check(t, conn.Close())
					}
					_ = v.process.Cmd.Process.Signal(syscall.SIGTERM) // it may be dead
				}
				status := v.exit(t)
				if status != 0 && v.state.Signal() != unix.SIGKILL {
					t.Errorf("exit status %d", status)
				}
				dead(t, s)
				s.undone(t)
				if t.Failed() {
					t.Logf("killed at call %d:\n%s", n, &v.process.Err)
				}
				return v.calls.Load(), status != 0
			})
			outcome = append(outcome, fmt.Sprintf("%s killed at %d of %d calls: %s", name, kills, calls, after))
		})
	}
	taps("the tap", "its guard gave the name back", false, func(t *testing.T, s tappedSocket) {
		testkit.Await(t, s.hasName)
	})
	taps("tap and guard at once", "`--undo` did", true, func(*testing.T, tappedSocket) {})
	t.Run("the repair", func(t *testing.T) {
		kills, calls := deaths(t, 6, func(t *testing.T, n int64) (int64, bool) {
			s := newTappedSocket(t)
			tap := serving(t, start(t, s.d, testkit.Plain(t, "uds"), "tap", "s"))
			tap.KillAll(t)
			if s.hasName() == nil {
				t.Error("nothing is to be undone")
			}
			undo := launchVictim(t, n, s.d, testkit.Plain(t, "uds"), "tap", "--undo", "s")
			status := undo.exit(t)
			s.undone(t)
			return undo.calls.Load(), status != 0
		})
		outcome = append(outcome, fmt.Sprintf("`--undo` killed at %d of %d: the next one did", kills, calls))
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F65", Done: "a tap of another program's socket killed at system calls from its start to its end: alone, together with its guard, and then the repair; at every one: `make crash`", Count: 30,
		Outcome: strings.Join(outcome, "; ") + "; then the name led to the same inode, and no other file was left",
	})
}
