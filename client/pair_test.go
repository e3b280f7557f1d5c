package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

const parentEvents = `sending 'This is the message.  It will be repeated.'
received 'This is the mess'
received 'age.  It will be'
received ' repeated.'
closing socket
`

const childEvents = `received 'This is the mess'
sending data back to the client
received 'age.  It will be'
sending data back to the client
received ' repeated.'
sending data back to the client
received ''
no data from
`

func TestPairTranscript(t *testing.T) {
	t.Parallel()
	d := dir(t)
	status, stdout, stderr := run(t, d, "", "pair", "--log-format", "plain")
	if status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q", status, stdout)
	}
	if diff := cmp.Diff(parentEvents+childEvents, stderr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantFiles(t, d)
}

func TestPairEventsNameTheirProcess(t *testing.T) {
	t.Parallel()
	status, stdout, stderr := run(t, dir(t), "", "pair", "--log-format", "json", message)
	if status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q", status, stdout)
	}
	events := map[string]string{}
	for line := range strings.Lines(stderr) {
		var e struct{ Process, Message string }
		check(t, json.Unmarshal([]byte(line), &e))
		events[e.Process] += e.Message + "\n"
	}
	if diff := cmp.Diff(map[string]string{"parent": parentEvents, "child": childEvents}, events); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	status, stdout, stderr = run(t, dir(t), "", "pair", "--log-level", "warn", "")
	if status != 0 || stdout != "" || stderr != "" {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
}

// startStuckPair starts a pair that is blocked, because no process reads its
// output.
func startStuckPair(t *testing.T) (p *testkit.Process, child int, output *os.File) {
	t.Helper()
	output, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() { _ = output.Close() })
	p = testkit.Prepare(t, dir(t), "client", "pair", "--log-format", "plain", strings.Repeat("m", 100_000))
	p.Cmd.Stdout = w
	p.Start(t)
	check(t, w.Close())
	p.Err.Await(t, 1, "sending '")
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.Pid()))
	check(t, err)
	for _, list := range lists {
		text, err := os.ReadFile(list)
		check(t, err)
		if pid := strings.TrimSpace(string(text)); pid != "" {
			child, err = strconv.Atoi(pid)
			check(t, err)
		}
	}
	if child == 0 {
		t.Fatal("there is no child")
	}
	return p, child, output
}

func TestPairFailsWithItsChild(t *testing.T) {
	t.Parallel()
	p, child, output := startStuckPair(t)
	check(t, unix.Kill(child, unix.SIGKILL))
	_, err := io.Copy(io.Discard, output)
	check(t, err)
	if status := p.Status(t); status != 1 {
		t.Errorf("exit status %d", status)
	}
	if !strings.HasSuffix(p.Err.String(), "\nclient: the child failed: signal: killed\n") {
		t.Errorf("error %q", &p.Err)
	}
}

func TestChildDoesNotOutliveItsParent(t *testing.T) {
	t.Parallel()
	for s, want := range map[syscall.Signal]int{syscall.SIGKILL: -1, syscall.SIGTERM: 1, syscall.SIGINT: 1} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			p, child, output := startStuckPair(t)
			pidfd, err := unix.PidfdOpen(child, 0)
			check(t, err)
			defer func() { check(t, unix.Close(pidfd)) }()
			p.Signal(t, s)
			_, err = io.Copy(io.Discard, output)
			check(t, err)
			if status := p.Status(t); status != want {
				t.Errorf("exit status %d", status)
			}
			if !testkit.Ready(t, pidfd, unix.POLLIN) {
				t.Error("the child is still there")
			}
		})
	}
}

func TestChildCommandByItselfIsFailure(t *testing.T) {
	t.Parallel()
	status, stdout, stderr := run(t, dir(t), "", "pair-child")
	if status != 1 || stdout != "" || stderr != "client: as the child of client pair: descriptor 3 is not a stream socket\n" {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
}
