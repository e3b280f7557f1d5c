package main_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// The pair is blocked, because no process reads its output, when one of both gets
// a signal. Neither outlives the other.
func TestPairEndsTogether(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		child  bool // gets the signal, not its parent
		signal syscall.Signal
		status int
		stderr string
	}{
		"child killed":       {true, syscall.SIGKILL, 1, "\nclient: the child failed: signal: killed\n"},
		"parent killed":      {false, syscall.SIGKILL, -1, ""},
		"parent terminated":  {false, syscall.SIGTERM, 1, ""},
		"parent interrupted": {false, syscall.SIGINT, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			output, w, err := os.Pipe()
			check(t, err)
			defer func() { _ = output.Close() }()
			p := testkit.Prepare(t, dir(t), "client", "pair", "--log-format", "plain", strings.Repeat("m", 100_000))
			p.Cmd.Stdout = w
			p.Start(t)
			check(t, w.Close())
			p.Err.Await(t, 1, "sending '")
			child := 0
			lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.Pid()))
			check(t, err)
			for _, list := range lists {
				if text, err := os.ReadFile(list); err == nil && len(text) > 0 {
					child, err = strconv.Atoi(strings.TrimSpace(string(text)))
					check(t, err)
				}
			}
			pidfd, err := unix.PidfdOpen(child, 0)
			check(t, err)
			defer func() { check(t, unix.Close(pidfd)) }()
			target := p.Pid()
			if tt.child {
				target = child
			}
			check(t, unix.Kill(target, tt.signal))
			_, err = io.Copy(io.Discard, output)
			check(t, err)
			if status := p.Status(t); status != tt.status || !strings.HasSuffix(p.Err.String(), tt.stderr) {
				t.Errorf("exit status %d, error %q", status, &p.Err)
			}
			if !testkit.Ready(t, pidfd, unix.POLLIN) {
				t.Error("the child is still there")
			}
		})
	}
}
