package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/testcontainers/testcontainers-go"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestHexDumpIsWhatTheREADMESays(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	startServer(t, volume)
	client := runClient(t, volume, []string{"send", "--hex", "This is the message.  It will be repeated."}, tool)
	out, events := client.output(t)
	if code := client.exitCode(t); code != 0 {
		t.Errorf("exit %d, %s", code, events)
	}
	if d := cmp.Diff(readme(t, "hex"), out); d != "" {
		t.Errorf("README.md and uds (-README +uds):\n%s", d)
	}
}

// The engine's socket was made by another program.
func TestSendTalksToTheEngine(t *testing.T) {
	t.Parallel()
	path := engineSocket(t)
	client := exec.CommandContext(t.Context(), programs(t)+"/uds", "send", "--connect", path, "-")
	client.Stdin = strings.NewReader("GET /_ping HTTP/1.0\r\n\r\n")
	var out, errs bytes.Buffer
	client.Stdout, client.Stderr = &out, &errs
	if err := client.Run(); err != nil {
		t.Errorf("%v\n%s", err, &errs)
	}
	if s := out.String(); !strings.HasPrefix(s, "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(s, "\r\n\r\nOK") {
		t.Errorf("output %q", s)
	}
}

func TestPairIsWhatTheREADMESays(t *testing.T) {
	t.Parallel()
	client := runClient(t, newVolume(t), []string{"pair"})
	out, events := client.output(t)
	if code := client.exitCode(t); code != 0 || out != message {
		t.Errorf("exit %d, output %q", code, out)
	}
	if d := cmp.Diff(readme(t, "pair"), events); d != "" {
		t.Errorf("README.md and client (-README +client):\n%s", d)
	}
}

// A tap on the machine shows what a client says in its container, and the server
// there sees that client and not the tap.
func TestTapShowsWhatTheDocumentSays(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to reach a container's files")
	volume := newVolume(t)
	server := startServer(t, volume, testcontainers.WithEnv(map[string]string{"UDS_ALLOW_UID": "10002"}))
	_, pid := server.name(t)
	path := fmt.Sprintf("/proc/%d/root%s", pid, socketPath)
	tap := testkit.Start(t, t.TempDir(), programs(t)+"/uds", "tap", path)
	tap.Err.Await(t, 1, "waiting for a ")
	client := runClient(t, volume, []string{"--connect", socketPath, "--require-uid", "10001", "hello"})
	if out, events := client.output(t); out != "hello" {
		t.Errorf("the client printed %q, %s", out, events)
	}
	tap.Out.Await(t, 1, "client -> target: end")
	tap.Signal(t, os.Interrupt)
	tap.WantStatus(t, 0)
	masked := func(text string) string {
		text = regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d(\.\d+)?|(uid|gid|pid) \d+|\d+ (connections that)`).ReplaceAllString(text, "$3")
		return strings.NewReplacer(path, "PATH", "uds_socket", "PATH").Replace(text)
	}
	first, _, _ := strings.Cut(tap.Err.String(), "\n")
	if d := cmp.Diff(masked(readme(t, "tap")), masked(first+"\n"+tap.Out.String())); d != "" {
		t.Errorf("the document and uds tap (-document +uds):\n%s", d)
	}
}
