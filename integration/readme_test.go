package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

// programs returns a new directory with the programs, as the images have them.
func programs(t *testing.T) (dir string) {
	t.Helper()
	from, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, name := range []string{"server", "client", "uds"} {
		testkit.Check(t, os.Symlink(from+"/"+name, dir+"/"+name))
	}
	return dir
}

// builtDir is what built has made; TestMain removes it.
var builtDir string

// built copies the programs from the images.
var built = sync.OnceValues(func() (dir string, err error) {
	if builtDir, err = os.MkdirTemp("", "udsecho"); err != nil {
		return "", err
	}
	ctx := context.Background()
	for image, name := range map[string]string{serverImage: "server", clientImage: "client", toolImage: "uds"} {
		from, err := engine.ContainerCreate(ctx, &container.Config{Image: image, Labels: labels()}, nil, nil, nil, "")
		if err != nil {
			return "", err
		}
		out, err := exec.Command("docker", "cp", from.ID+":/usr/local/bin/"+name, builtDir).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("docker cp: %w\n%s", err, out)
		}
		if err := errors.Join(err, engine.ContainerRemove(ctx, from.ID, container.RemoveOptions{})); err != nil {
			return "", err
		}
	}
	return builtDir, nil
})

func TestTwoTerminalsShowWhatTheREADMESays(t *testing.T) {
	t.Parallel()
	dir := programs(t)
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

func TestStatusIsAsTheREADMESays(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "curl", "curl")
	dir := programs(t)
	server := exec.CommandContext(t.Context(), "./server", "--admin", "stream:./admin")
	server.Dir = dir
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	client := exec.CommandContext(t.Context(), "./client", "--retry", "20s")
	client.Dir = dir
	if out, err := client.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The parts that differ from one machine, and second, to the next.
	masked := func(status string) string {
		return regexp.MustCompile(`("(go|uptime_seconds)": ).*[^,\n]`).ReplaceAllString(status, "${1}…")
	}
	var status string
	for late := time.Now().Add(testkit.Patience); ; { // until the server has noticed the client's end
		curl := exec.CommandContext(t.Context(), "curl", "-sS", "--unix-socket", "admin", "http://localhost/status")
		curl.Dir = dir
		out, err := curl.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if status = string(out); strings.Contains(status, "\n  \"connections\": 0,") || time.Now().After(late) {
			break
		}
	}
	if d := cmp.Diff(masked(readme(t, "status")), masked(status)); d != "" {
		t.Errorf("README.md and server (-README +server):\n%s", d)
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
}

// The README's HTTP server answers, and ends on SIGTERM with its socket file.
func TestListenOfTheREADMEServesUntilSIGTERM(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	source := `package main
import ("context"; "net/http"; "os"; "os/signal"; "syscall"; "github.com/udsecho/udsecho/uds")
func serve(handler http.Handler) error {
` + strings.ReplaceAll(readme(t, "listen"), "/run/uds/socket", d+"/s") + `}
func main() { if serve(http.NotFoundHandler()) != nil { os.Exit(1) } }
`
	if err := os.WriteFile(d+"/main.go", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", d+"/server", d+"/main.go")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	server := testkit.Start(t, d, d+"/server")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d+"/s")
	}}}
	defer client.CloseIdleConnections()
	testkit.Await(t, func() error {
		answer, err := client.Get("http://server/")
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	})
	server.Signal(t, syscall.SIGTERM)
	server.WantStatus(t, 0)
	testkit.WantGone(t, d+"/s")
}

// The README's relay shows an echo of "hello".
func TestRelayShowsWhatTheREADMESays(t *testing.T) {
	t.Parallel()
	dir := programs(t)
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "./"+name, args...)
		cmd.Dir = dir
		return cmd
	}
	var shown bytes.Buffer
	relay := command("uds", "forward", "--listen", "stream:door", "--connect", "stream:uds_socket", "--show", "hex")
	relay.Stdout = &shown
	for _, cmd := range []*exec.Cmd{command("server"), relay} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}()
	}
	for _, address := range []string{"stream:uds_socket", "stream:door"} { // the first waits for the server
		if out, err := command("client", "--retry", "20s", "--connect", address, "hello").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	_ = relay.Process.Signal(syscall.SIGTERM)
	_ = relay.Wait() // then the record is complete
	masked := func(text string) string {
		return regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d+|\b(uid|gid|pid) \d+`).ReplaceAllString(text, "…")
	}
	if want, got := masked(readme(t, "show")), masked(shown.String()); !strings.HasPrefix(got, want) {
		t.Errorf("README.md and the relay (-README +relay):\n%s", cmp.Diff(want, got))
	}
}
