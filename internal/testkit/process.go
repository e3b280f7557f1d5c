package testkit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The programs that Main has built: from sources, into directory bin.
var (
	bin     string
	sources []string
)

// Main builds programs from their source directories, with the race detector
// if the tests have it, runs the tests, and exits. It exits with a failure if
// a goroutine of the tests is still running, or a program had a data race.
func Main(m *testing.M, from ...string) {
	sources = from
	WaitInParallel()
	if flag.Lookup("test.fuzz").Value.String() != "" { // in many processes, which start no programs
		goleak.VerifyTestMain(m)
		return
	}
	if err := build(); err != nil {
		_ = os.RemoveAll(bin)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		if races() {
			status = 1
		}
		_ = os.RemoveAll(bin)
		os.Exit(status)
	}))
}

func build() (err error) {
	if bin, err = os.MkdirTemp("", "bin"); err != nil {
		return err
	}
	if raced() {
		// The reports go to files, which exist even if a program is killed.
		// Without atexit_sleep_ms=0 each program would wait a second at its
		// end for more reports.
		err = os.Setenv("GORACE", "log_path="+bin+"/race/report atexit_sleep_ms=0")
	}
	// Programs run as other users write reports, too.
	err = errors.Join(err, os.Chmod(bin, 0o755), os.Mkdir(bin+"/race", 0o700), os.Chmod(bin+"/race", 0o777|os.ModeSticky),
		os.WriteFile(Program("as"), []byte(as), 0o755))
	return errors.Join(err, goBuild(bin, raced(), sources))
}

func goBuild(d string, race bool, from []string) error {
	args := append([]string{"build", fmt.Sprintf("-race=%v", race), "-o", d + "/"}, from...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// raced reports whether the tests were built with -race.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// races reports whether a program had a data race, and prints it.
func races() bool {
	reports, _ := filepath.Glob(bin + "/race/*")
	for _, name := range reports {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(os.Stderr, "a program under test has a data race:\n%s", text)
	}
	return len(reports) > 0
}

// Program returns the path of a program that Main has built.
func Program(name string) string { return bin + "/" + name }

// Build builds more programs, as Main does, into the directory Program(name). So
// they may have the names of others.
func Build(name string, from ...string) error { return goBuild(Program(name), raced(), from) }

var buildPlain = sync.OnceValue(func() error { return goBuild(bin+"/plain", false, sources) })

// Plain returns the path of a program as users run it, for tests of properties
// that the race detector changes: memory, speed, and the system calls of a
// program.
func Plain(t testing.TB, name string) string {
	t.Helper()
	if !raced() {
		return Program(name)
	}
	Check(t, buildPlain())
	return bin + "/plain/" + name
}

// A Text is the output of a process or a log, and can be waited for. The zero
// value is empty.
type Text struct {
	mu   sync.Mutex
	b    strings.Builder
	more chan struct{}
}

func (x *Text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.more != nil {
		close(x.more)
		x.more = nil
	}
	return x.b.Write(p)
}

func (x *Text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// Count returns how often the text contains words.
func (x *Text) Count(words string) int { return strings.Count(x.String(), words) }

// Reaches waits until the text contains words n times, and returns true, or
// until over is closed.
func (x *Text) Reaches(n int, words string, over <-chan struct{}) bool {
	for {
		x.mu.Lock()
		if x.more == nil {
			x.more = make(chan struct{})
		}
		found, more := strings.Count(x.b.String(), words), x.more
		x.mu.Unlock()
		if found >= n {
			return true
		}
		select {
		case <-more:
		case <-over:
			return false
		}
	}
}

// Await waits until the text contains words n times.
func (x *Text) Await(t testing.TB, n int, words string) {
	t.Helper()
	late, stop := context.WithTimeout(context.Background(), Patience)
	defer stop()
	if !x.Reaches(n, words, late.Done()) {
		t.Fatalf("found %q %d times, not %d, in:\n%s", words, x.Count(words), n, x)
	}
}

// A Process is a program under test, or another program that it talks to.
type Process struct {
	Cmd      *exec.Cmd
	In       io.WriteCloser // its standard input, if Cmd.Stdin is not set to another
	Out, Err Text           // its output, if Cmd.Stdout and Cmd.Stderr are not
	Ended    chan struct{}  // closed at its end
}

// Prepare returns a process of one of the programs that Main has built, or of
// another program, in directory d. It is not yet started: Cmd can be changed.
func Prepare(t testing.TB, d string, args ...string) *Process {
	t.Helper()
	program := args[0]
	if _, err := os.Stat(Program(program)); bin != "" && err == nil {
		program = Program(program)
	}
	p := &Process{Cmd: exec.CommandContext(t.Context(), program, args[1:]...), Ended: make(chan struct{})}
	p.Cmd.Dir = d
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "UDS_") {
			p.Cmd.Env = append(p.Cmd.Env, v)
		}
	}
	p.Cmd.Stdout, p.Cmd.Stderr = &p.Out, &p.Err
	p.Cmd.WaitDelay = Patience
	var err error
	p.In, err = p.Cmd.StdinPipe()
	Check(t, err)
	return p
}

// Start prepares a process and starts it.
func Start(t testing.TB, d string, args ...string) *Process {
	t.Helper()
	p := Prepare(t, d, args...)
	p.Start(t)
	return p
}

// Run runs a program to its end.
func Run(t testing.TB, d, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	p := Start(t, d, args...)
	_, _ = io.WriteString(p.In, stdin) // a program need not read all of it
	_ = p.In.Close()
	return p.Status(t), p.Out.String(), p.Err.String()
}

// Start starts a process. If it still runs at the end of the test, it is
// killed.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	Check(t, p.Cmd.Start())
	go func() {
		defer close(p.Ended)
		_ = p.Cmd.Wait()
	}()
	t.Cleanup(func() { <-p.Ended })
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.Cmd.Process.Pid }

// StatusNumber returns a number of /proc/PID/status, proc(5): VmHWM for example,
// the largest resident memory so far in KiB. It is 0 if the process has ended.
func (p *Process) StatusNumber(t testing.TB, field string) (n int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	Check(t, err)
	_, after, running := strings.Cut(string(status), field+":")
	if !running {
		return 0
	}
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatalf("%v in %s", err, status)
	}
	return n
}

// CPUTime returns the processor time that a running process has used. Other
// processes hardly change it.
func (p *Process) CPUTime(t testing.TB) time.Duration {
	t.Helper()
	var used unix.Timespec
	// The clock of a process, clock_getcpuclockid(3): CPUCLOCK_SCHED is 2.
	Check(t, unix.ClockGettime(int32(^p.Pid())<<3|2, &used))
	return time.Duration(used.Nano())
}

// Pause stops the process, SIGSTOP, and waits until it has stopped. goOn lets it
// continue.
func (p *Process) Pause(t testing.TB) (goOn func()) {
	t.Helper()
	p.Signal(t, syscall.SIGSTOP)
	Check(t, unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WSTOPPED|unix.WNOWAIT, nil))
	return func() { t.Helper(); p.Signal(t, syscall.SIGCONT) }
}

// PauseAlone is Pause, and keeps all tests from starting processes meanwhile, see
// [NoStarts].
func (p *Process) PauseAlone(t testing.TB) (goOn func()) {
	t.Helper()
	resume, end := p.Pause(t), NoStarts(t)
	return func() { t.Helper(); end(); resume() }
}

// KillAll kills the process and those that it has started, and waits for its end.
// It is stopped meanwhile, so that it cannot notice their end.
func (p *Process) KillAll(t testing.TB) {
	t.Helper()
	p.Pause(t)
	KillChildren(p.Pid())
	p.Signal(t, syscall.SIGKILL)
	p.Status(t)
}

// KillChildren kills the processes that a process has started.
func KillChildren(pid int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, child := range strings.Fields(string(text)) {
			if id, err := strconv.Atoi(child); err == nil {
				_ = unix.Kill(id, unix.SIGKILL)
			}
		}
	}
}

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	Check(t, p.Cmd.Process.Signal(s))
}

// Status waits for the end and returns the exit status, -1 after a signal.
func (p *Process) Status(t testing.TB) int {
	t.Helper()
	select {
	case <-p.Ended:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(Patience):
		t.Fatalf("%v does not end; it wrote:\n%s%s", p.Cmd.Args, &p.Out, &p.Err)
		return 0
	}
}

// WantStatus waits for the end, and checks the exit status, -1 after a signal.
func (p *Process) WantStatus(t testing.TB, want int) {
	t.Helper()
	if status := p.Status(t); status != want {
		t.Errorf("%q: exit status %d, not %d, after:\n%s%s", p.Cmd.Args, status, want, &p.Out, &p.Err)
	}
}

// Terminate sends SIGTERM, waits for the end, and returns the exit status.
func (p *Process) Terminate(t testing.TB) int {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	return p.Status(t)
}

// Stop terminates one of our servers. The server must succeed and leave no
// file behind.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	p.WantStatus(t, 0)
	WantFiles(t, p.Cmd.Dir)
}
