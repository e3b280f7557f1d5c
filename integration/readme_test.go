package integration

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTwoTerminalsShowWhatTheREADMESays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	goBuild := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "./server", "./client")
	goBuild.Dir = ".."
	if out, err := goBuild.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	server := exec.CommandContext(t.Context(), "./server", "--log-format", "plain")
	server.Dir = dir
	events, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(events)
	var got strings.Builder
	untilWaiting := func() {
		for lines.Scan() {
			got.WriteString(lines.Text() + "\n")
			if lines.Text() == "waiting for a connection" {
				return
			}
		}
		t.Fatalf("the server ended: %s", got.String())
	}
	untilWaiting()

	client := exec.CommandContext(t.Context(), "./client", "--log-format", "plain")
	client.Dir = dir
	var out, errs bytes.Buffer
	client.Stdout, client.Stderr = &out, &errs
	if err := client.Run(); err != nil || out.String() != message {
		t.Errorf("client: %v, output %q", err, out.String())
	}
	if d := cmp.Diff(readme(t, "client"), errs.String()); d != "" {
		t.Errorf("README.md and client (-README +client):\n%s", d)
	}
	untilWaiting()
	if d := cmp.Diff(readme(t, "server"), got.String()); d != "" {
		t.Errorf("README.md and server (-README +server):\n%s", d)
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
}
