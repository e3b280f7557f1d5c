package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

// compose is a compose command on the project's own compose.yaml.
type compose struct {
	command []string
	project string
}

// composes returns the compose commands of this machine: with make stress both
// versions, otherwise the newer one.
func composes(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	if exec.CommandContext(t.Context(), "docker", "compose", "version").Run() == nil {
		found["v2"] = []string{"docker", "compose"}
	}
	if (testkit.Stress() || len(found) == 0) && exec.CommandContext(t.Context(), "docker-compose", "version").Run() == nil {
		found["v1"] = []string{"docker-compose"}
	}
	if len(found) < testkit.Count(1, 2) {
		testkit.Missing(t, `"docker compose" or "docker-compose"`, "install the package docker-compose-plugin")
	}
	return found
}

func (c compose) run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	all := append(append(c.command[1:len(c.command):len(c.command)], "-p", c.project), args...)
	// Not the test's context: down must run when the test has ended.
	cmd := exec.CommandContext(context.Background(), c.command[0], all...)
	cmd.Dir = ".."
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (c compose) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := c.run(t, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", strings.Join(c.command, " "), strings.Join(args, " "), err, out, errs)
	}
	return out
}

// left lists everything of the project that the engine still has.
func (c compose) left(t *testing.T) []string {
	t.Helper()
	mine := filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+c.project))
	var left []string
	containers, err := engine.ContainerList(t.Context(), container.ListOptions{All: true, Filters: mine})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		left = append(left, c.Names...)
	}
	volumes, err := engine.VolumeList(t.Context(), volume.ListOptions{Filters: mine})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes.Volumes {
		left = append(left, v.Name)
	}
	networks, err := engine.NetworkList(t.Context(), network.ListOptions{Filters: mine})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		left = append(left, n.Name)
	}
	return left
}

// ids returns the containers of a service.
func (c compose) ids(t *testing.T, service string) []string {
	t.Helper()
	containers, err := engine.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(
		filters.Arg("label", "com.docker.compose.project="+c.project),
		filters.Arg("label", "com.docker.compose.service="+service))})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range containers {
		ids = append(ids, c.ID)
	}
	return ids
}

// forEachCompose runs a test with each compose command, one after the other.
func forEachCompose(t *testing.T, test func(t *testing.T, c compose)) {
	for name, command := range composes(t) {
		t.Run(name, func(t *testing.T) {
			c := compose{command, project()}
			t.Cleanup(func() { c.must(t, "down", "-v", "--rmi", "local", "--remove-orphans") })
			c.must(t, "build")
			test(t, c)
		})
	}
}

func TestComposeFile(t *testing.T) {
	forEachCompose(t, func(t *testing.T, c compose) {
		c.must(t, "-f", "compose.yaml", "-f", "bench/compose.yaml", "config", "-q")
		out, errs, err := c.run(t, "up", "--exit-code-from", "client")
		if err != nil {
			t.Fatalf("up: %v\n%s%s", err, out, errs)
		}
		if !strings.Contains(out+errs, "received ' repeated.'") {
			t.Errorf("up shows no transcript:\n%s%s", out, errs)
		}
		wantServer, wantClient := transcripts(socketPath)
		wantServer = strings.Replace(wantServer, "waiting", "starting up on /run/uds/uds_datagram\nstarting up on /run/uds/uds_seqpacket\nstarting up on /run/uds/uds_files\nwaiting", 1)
		echoed, events := logs(t, c.ids(t, "client")[0])
		if echoed != message || events != wantClient {
			t.Errorf("client: output %q, events (-want +got):\n%s", echoed, cmp.Diff(wantClient, events))
		}
		// The server may be stopped before it has logged the client's end.
		if _, events := logs(t, c.ids(t, "server")[0]); !strings.HasPrefix(wantServer, events) || len(events) < len(wantServer)/2 {
			t.Errorf("server's transcript (-want +got):\n%s", cmp.Diff(wantServer, events))
		}

		c.must(t, "up", "-d", "--scale", "client=20")
		if row := c.must(t, "exec", "-T", "server", "ls", "-l", "/run/uds"); !strings.Contains(row, "\nsrw-rw----") {
			t.Errorf("ls -l shows no socket of mode 0660:\n%s", row)
		}
		for _, id := range c.ids(t, "client") {
			if code := awaitExit(t, id); code != 0 {
				t.Errorf("one of 20 clients: exit %d, want 0", code)
			}
		}
		for kind, name := range map[string]string{"stream": "socket", "datagram": "datagram", "seqpacket": "seqpacket"} {
			if got := c.must(t, "run", "--rm", "-T", "client", "--connect", kind+":/run/uds/uds_"+name, "hello"); got != "hello" {
				t.Errorf("run client --connect %s hello: %q", kind, got)
			}
		}
		const sum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03  /dev/shm/greeting\n"
		if got := c.must(t, "run", "--rm", "-T", "--entrypoint", "sh", "client", "-c",
			"echo hello >/dev/shm/greeting && client send-file --connect files:/run/uds/uds_files /dev/shm/greeting"); got != sum {
			t.Errorf("run client send-file: %q", got)
		}
		const want = "/run/clients:\n\n/run/uds:\n.uds_datagram.lock\n.uds_datagram.takeover\n.uds_files.lock\n.uds_seqpacket.lock\n.uds_socket.lock\nuds_datagram\nuds_files\nuds_seqpacket\nuds_socket\n"
		if left := c.must(t, "exec", "-T", "server", "ls", "-A", "/run/clients", "/run/uds"); left != want {
			t.Errorf("left in the volumes (-want +got):\n%s", cmp.Diff(want, left))
		}
		c.must(t, "down", "-v")
		if left := c.left(t); len(left) > 0 {
			t.Errorf("down -v leaves %v", left)
		}
	})
}

// makeTarget runs make with the test's own compose project in dir. It returns
// standard output and removes everything afterwards.
func makeTarget(t *testing.T, dir, target string, env ...string) string {
	t.Helper()
	t.Cleanup(func() {
		if err := removeImages(context.Background(), func(tag string) bool { return strings.HasPrefix(tag, project()) }); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.CommandContext(t.Context(), "make", "--no-print-directory", target)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "COMPOSE_PROJECT_NAME="+project()), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("make %s: %v\n%s%s", target, err, out, errs.String())
	}
	if left := (compose{project: project()}).left(t); len(left) > 0 {
		t.Errorf("make %s leaves %v", target, left)
	}
	return string(out)
}

func TestDemoShowsWhatTheREADMESays(t *testing.T) {
	composes(t)
	out := makeTarget(t, "..", "demo")
	when := regexp.MustCompile(`[A-Z][a-z]{2} +\d+ +\d\d:\d\d `)
	want := when.ReplaceAllString(readme(t, "demo"), "")
	if d := cmp.Diff(want, when.ReplaceAllString(out, "")); d != "" {
		t.Errorf("docs/learn.md and make demo (-learn.md +demo):\n%s", d)
	}
	for line := range strings.Lines(when.ReplaceAllString(readme(t, "quick start"), "")) {
		if !strings.Contains(out, line) && !strings.Contains(when.ReplaceAllString(out, ""), line) {
			t.Errorf("make demo does not show the README's line %q", line)
		}
	}
}

// The README's commands for a stack that stays, as they stand.
func TestStackStaysAndIsTakenDown(t *testing.T) {
	forEachCompose(t, func(t *testing.T, c compose) {
		script := fmt.Sprintf("docker_compose() { %s -p %s \"$@\"; }\n", strings.Join(c.command, " "), c.project) +
			strings.ReplaceAll(readme(t, "stack"), "docker compose ", "docker_compose ")
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
		cmd.Dir = ".."
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "received 'hello'") || !strings.Contains(string(out), "srw-rw----") {
			t.Errorf("%v\n%s", err, out)
		}
		if left := c.left(t); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// The README's abridged compose file, on the images under test.
func TestAbridgedComposeFileEchoes(t *testing.T) {
	file := t.TempDir() + "/compose.yaml"
	text := strings.NewReplacer("image: udsecho-server", "image: "+serverImage, "image: udsecho-client", "image: "+clientImage).Replace(readme(t, "compose"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, command := range composes(t) {
		t.Run(name, func(t *testing.T) {
			c := compose{append(command[:len(command):len(command)], "-f", file), project()}
			t.Cleanup(func() { c.must(t, "down", "-v") })
			c.must(t, "up", "-d")
			client := c.ids(t, "client")[0]
			if code := awaitExit(t, client); code != 0 {
				t.Errorf("the client: exit %d", code)
			}
			if out, events := logs(t, client); out != message {
				t.Errorf("output %q\n%s", out, events)
			}
		})
	}
}
