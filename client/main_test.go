package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
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

// client is the program, built with the race detector if the tests are.
var client string

func TestMain(m *testing.M) {
	d, err := build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	client = d + "/client"
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		if races(d) {
			status = 1
		}
		_ = os.RemoveAll(d)
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
		// The program's reports go to files, which a killed one leaves too. At
		// its end it does not wait for a second for more of them.
		err = os.Setenv("GORACE", "log_path="+d+"/race/report atexit_sleep_ms=0")
	}
	// Other users are to run it too, and to report.
	err = errors.Join(err, os.Chmod(d, 0o755), os.Mkdir(d+"/race", 0o700), os.Chmod(d+"/race", 0o777|os.ModeSticky))
	if err == nil {
		var out []byte
		if out, err = exec.Command("go", "build", race, "-o", d+"/", ".").CombinedOutput(); err != nil {
			err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	if err != nil {
		_ = os.RemoveAll(d)
		return "", err
	}
	return d, nil
}

// raced reports whether the tests were built with -race.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// races reports whether the program has seen a data race, and prints it.
func races(d string) bool {
	reports, _ := filepath.Glob(d + "/race/*")
	for _, name := range reports {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(os.Stderr, "the program under test has a data race:\n%s", text)
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

func (x *text) await(t *testing.T, words string) {
	t.Helper()
	late := time.After(patience)
	for {
		x.mu.Lock()
		found, changed := strings.Contains(x.b.String(), words), x.changed
		x.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%q is not in:\n%s", words, x)
		}
	}
}

type process struct {
	*exec.Cmd
	in       io.WriteCloser
	out, err text
	ended    chan struct{}
}

// start starts a program in directory d, its output to a file if one is given.
// The test kills it at its end if it is still there.
func start(t *testing.T, d string, stdout *os.File, args ...string) *process {
	t.Helper()
	p := prepare(t, d, args...)
	if stdout != nil {
		p.Stdout = stdout
	}
	var err error
	p.in, err = p.StdinPipe()
	check(t, err)
	p.launch(t)
	return p
}

func prepare(t *testing.T, d string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), args[0], args[1:]...), ended: make(chan struct{})}
	p.out.changed, p.err.changed = make(chan struct{}), make(chan struct{})
	p.Dir = d
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "UDS_") {
			p.Env = append(p.Env, v)
		}
	}
	p.Stdout, p.Stderr = &p.out, &p.err
	p.WaitDelay = patience
	return p
}

func (p *process) launch(t *testing.T) {
	t.Helper()
	check(t, p.Start())
	go func() {
		defer close(p.ended)
		_ = p.Wait()
	}()
	t.Cleanup(func() { <-p.ended })
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

// run runs the client to its end.
func run(t *testing.T, d, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	p := start(t, d, nil, append([]string{client}, args...)...)
	// Not every client reads it.
	_, _ = io.WriteString(p.in, stdin)
	_ = p.in.Close()
	return p.status(t), p.out.String(), p.err.String()
}

// stop ends a stranger, which need not be graceful about it.
func (p *process) stop(t *testing.T) {
	t.Helper()
	check(t, p.Process.Signal(syscall.SIGTERM))
	<-p.ended
}

// listen is a server's socket in a fresh directory with a short path.
func listen(t *testing.T) (d string, l net.Listener) {
	t.Helper()
	d = dir(t)
	l, err := net.Listen("unix", d+"/uds_socket")
	check(t, err)
	t.Cleanup(func() { check(t, l.Close()) })
	return d, l
}

func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
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

// need is a program of the system that a test talks to.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%v: install the package %s", err, pkg)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
