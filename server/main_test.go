package main_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// bin holds both programs, built with the race detector if the tests are.
var bin string

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "crowd" {
		if err := crowd(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var err error
	if bin, err = build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		if races(bin) {
			status = 1
		}
		_ = os.RemoveAll(bin)
		os.Exit(status)
	}))
}

func build() (string, error) {
	d, err := os.MkdirTemp("", "bin")
	if err != nil {
		return "", err
	}
	race := "-race=false"
	if raced() {
		race = "-race"
		// The programs' reports go to files, which a killed one leaves too.
		// At its end none waits for a second for more of them.
		err = os.Setenv("GORACE", "log_path="+d+"/race/report atexit_sleep_ms=0")
	}
	// Other users are to run them too, and to report.
	err = errors.Join(err, os.Chmod(d, 0o755), os.Mkdir(d+"/race", 0o700), os.Chmod(d+"/race", 0o777|os.ModeSticky))
	if err == nil {
		err = goBuild(d, race)
	}
	if err != nil {
		_ = os.RemoveAll(d)
		return "", err
	}
	return d, nil
}

func goBuild(d, race string) error {
	if out, err := exec.Command("go", "build", race, "-o", d+"/", ".", "../client").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// buildPlain builds both programs as users have them, for tests of what the race
// detector changes: memory, speed, and which system calls a program makes.
var buildPlain = sync.OnceValue(func() error { return goBuild(bin+"/plain", "-race=false") })

func plain(t *testing.T) (d string) {
	t.Helper()
	if !raced() {
		return bin
	}
	check(t, buildPlain())
	return bin + "/plain"
}

// raced reports whether the tests were built with -race.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// races reports whether a program has seen a data race, and prints it.
func races(d string) bool {
	reports, _ := filepath.Glob(d + "/race/*")
	for _, name := range reports {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(os.Stderr, "a program under test has a data race:\n%s", text)
	}
	return len(reports) > 0
}

// patience bounds every wait for an event; it is no measure of anything.
const patience = 20 * time.Second

// A text is what a process writes, and can be waited for.
type text struct {
	mu      sync.Mutex
	b       strings.Builder
	changed chan struct{}
}

func (x *text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	close(x.changed)
	x.changed = make(chan struct{})
	return x.b.Write(p)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// await waits until words are there n times.
func (x *text) await(t *testing.T, n int, words string) {
	t.Helper()
	late := time.After(patience)
	for {
		x.mu.Lock()
		found, changed := strings.Count(x.b.String(), words), x.changed
		x.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%q came %d times, not %d, in:\n%s", words, found, n, x)
		}
	}
}

type process struct {
	*exec.Cmd
	in       io.WriteCloser
	out, err text
	ended    chan struct{}
}

// start starts one of our programs, or another, in directory d. It is killed
// at the end of the test if it is still there.
func start(t *testing.T, d string, args ...string) *process {
	t.Helper()
	return startAs(t, os.Geteuid(), d, args...)
}

func startAs(t *testing.T, uid int, d string, args ...string) *process {
	t.Helper()
	return startWith(t, uid, nil, d, args...)
}

// startWith passes files on, as descriptors from 3.
func startWith(t *testing.T, uid int, files []*os.File, d string, args ...string) *process {
	t.Helper()
	var attr *syscall.SysProcAttr
	if uid != os.Geteuid() {
		attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return startAttr(t, attr, files, d, args...)
}

func startAttr(t *testing.T, attr *syscall.SysProcAttr, files []*os.File, d string, args ...string) *process {
	t.Helper()
	p := prepare(t, d, args...)
	p.ExtraFiles = files
	p.SysProcAttr = attr
	check(t, p.Start())
	go func() {
		defer close(p.ended)
		_ = p.Wait()
	}()
	t.Cleanup(func() { <-p.ended })
	return p
}

// prepare is a process that is still to be started.
func prepare(t *testing.T, d string, args ...string) *process {
	t.Helper()
	program := args[0]
	if program == "server" || program == "client" {
		program = bin + "/" + program
	}
	p := &process{Cmd: exec.CommandContext(t.Context(), program, args[1:]...), ended: make(chan struct{})}
	p.out.changed, p.err.changed = make(chan struct{}), make(chan struct{})
	p.Dir = d
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "UDS_") {
			p.Env = append(p.Env, v)
		}
	}
	p.Stdout, p.Stderr = &p.out, &p.err
	p.WaitDelay = patience
	var err error
	p.in, err = p.StdinPipe()
	check(t, err)
	return p
}

// status waits for the end and gives the exit status, -1 after a signal.
func (p *process) status(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("%v does not end; it wrote:\n%s%s", p.Args, &p.out, &p.err)
		return 0
	}
}

// run runs a program to its end.
func run(t *testing.T, d, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	p := start(t, d, args...)
	// Not everybody reads all of it.
	_, _ = io.WriteString(p.in, stdin)
	_ = p.in.Close()
	return p.status(t), p.out.String(), p.err.String()
}

// serve starts a server in d and waits until it serves.
func serve(t *testing.T, d string, args ...string) *process {
	t.Helper()
	p := start(t, d, append([]string{"server"}, args...)...)
	p.err.await(t, 1, "waiting for a ")
	return p
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	check(t, p.Process.Signal(s))
}

// stop ends a server, which must leave nothing behind.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != 0 {
		t.Errorf("exit status is %d after:\n%s", status, &p.err)
	}
	wantFiles(t, p.Dir)
}

// dir is a fresh directory with a short path, as sun_path is short.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
	check(t, os.Chmod(d, 0o755))
	return d
}

func wantFiles(t *testing.T, d string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(d)
	check(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, not %q", got, want)
	}
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not say %q", text, w)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// need is a program of the system that a test talks to.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%v: install the package %s", err, pkg)
	}
}
