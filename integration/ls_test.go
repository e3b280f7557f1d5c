package integration

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

// uds runs the tool on the engine's machine.
func uds(t *testing.T) func(args ...string) string {
	t.Helper()
	testkit.NeedRoot(t, "which may look into containers")
	program := programs(t) + "/uds"
	return func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), program, args...).Output()
		if err != nil {
			t.Fatalf("uds %q: %v", args, err)
		}
		return string(out)
	}
}

// startConnected starts a client that stays connected and sends nothing: its
// standard input stays open.
func startConnected(t *testing.T, volume, socket, user string, opts ...testcontainers.ContainerCustomizer) box {
	t.Helper()
	return start(t, clientImage, volume, append([]testcontainers.ContainerCustomizer{
		testcontainers.WithCmd("--connect", "/run/uds/"+socket, "-"), testcontainers.WithWaitStrategy(wait.ForLog("connecting to")), readOnly,
		testcontainers.WithConfigModifier(func(c *container.Config) { c.User, c.OpenStdin = user, true }),
	}, opts...)...)
}

// name returns the name of a container, and the process id of its first process.
func (b box) name(t *testing.T) (name string, pid int) {
	t.Helper()
	state, err := b.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(state.Name, "/"), state.State.Pid
}

func TestLsNamesContainersAsTheDocumentShows(t *testing.T) {
	t.Parallel()
	ls := uds(t)
	volume := newVolume(t)
	server := startServer(t, volume)
	client := startConnected(t, volume, "uds_socket", "10002:10000")
	serverName, serverPID := server.name(t)
	clientName, clientPID := client.name(t)
	// The same file, by its path in the server's container.
	path := fmt.Sprintf("/proc/%d/root%s", serverPID, socketPath)
	await(t, "the server to accept", func() bool { return strings.Contains(ls("ls", path), " 1 open\n") })

	clients := fmt.Sprintf("connections wait\n  clients   1: %s: client[%d] 10002\n", clientName, clientPID)
	await(t, "inspect to end in "+clients, func() bool { return strings.HasSuffix(ls("inspect", path), clients) })

	plain := func(text string) string {
		text = strings.NewReplacer(serverName, "udsecho-server-1", clientName, "udsecho-client-1").Replace(text)
		text = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(text, "[PID]")
		text = regexp.MustCompile(` \d{3,} `).ReplaceAllString(text, " INODE ")
		return regexp.MustCompile(`  +`).ReplaceAllString(text, " ")
	}
	for block, args := range map[string][]string{"ls": {"ls", path}, "ls mermaid": {"ls", "--format", "mermaid", path}} {
		got := ls(args...)
		for _, who := range []string{fmt.Sprintf("server[%d] 10001", serverPID), fmt.Sprintf("client[%d] 10002", clientPID)} {
			if !strings.Contains(got, who) {
				t.Errorf("%s: no %s in %s", block, who, got)
			}
		}
		if d := cmp.Diff(plain(readme(t, block)), plain(got)); d != "" {
			t.Errorf("the document and uds %q (-document +uds):\n%s", args, d)
		}
	}
}

// The flags are those of docs/debugging.md.
func TestLsSeesTheSameFromAContainer(t *testing.T) {
	t.Parallel()
	ls := uds(t)
	path := engineSocket(t)
	volume := newVolume(t)
	server := startServer(t, volume)
	startConnected(t, volume, "uds_socket", "10002:10000")
	_, pid := server.name(t)
	socket := fmt.Sprintf("/proc/%d/root%s", pid, socketPath)
	await(t, "the server to accept", func() bool { return strings.Contains(ls("ls", socket), " 1 open\n") })
	inContainer := func(user string, caps ...string) (stdout, stderr string) { // with docker's own capabilities
		return runClient(t, volume, []string{"ls", socket}, tool, withUser(user), withHost(func(h *container.HostConfig) {
			h.PidMode, h.CapDrop, h.CapAdd, h.Binds = "host", nil, caps, []string{path + ":/var/run/docker.sock"}
			h.SecurityOpt = append(h.SecurityOpt, "apparmor=unconfined")
		})).output(t)
	}
	await(t, "the same, with the names, for which the engine has a second", func() bool {
		got, stderr := inContainer("0", "SYS_ADMIN", "SYS_PTRACE")
		d := cmp.Diff(ls("ls", socket), got)
		if d != "" {
			t.Logf("in a container (-on the machine +in the container):\n%s\n%s", d, stderr)
		}
		return d == ""
	})
	if got, stderr := inContainer("10003"); got != "" || !strings.Contains(stderr, "; run it as root\nuds: no process is seen to serve "+socket) {
		t.Errorf("as a user: %s%s", got, stderr)
	}
}

// Beside a process of somebody else's container, whose image has no tool.
func TestInspectLooksIntoAnotherContainer(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startServer(t, volume)
	id := container.PidMode("container:" + server.GetContainerID())
	inRoot := "/proc/1/root" + socketPath
	for _, tt := range []struct {
		path, user string
		with       func(h *container.HostConfig)
	}{
		{inRoot, "10001:10000", func(*container.HostConfig) {}},
		{inRoot, "0", func(h *container.HostConfig) { h.CapDrop, h.CapAdd = nil, []string{"SYS_PTRACE"} }},
		{socketPath, "10001:10000", func(h *container.HostConfig) { h.VolumesFrom = []string{server.GetContainerID()} }},
	} {
		out, stderr := runClient(t, volume, []string{"inspect", tt.path}, tool, withUser(tt.user), withHost(func(h *container.HostConfig) {
			h.PidMode, h.NetworkMode, h.Binds = id, container.NetworkMode(id), nil
			tt.with(h)
		})).output(t)
		if d := cmp.Diff(strings.ReplaceAll(readme(t, "inspect joined"), inRoot, tt.path), out); d != "" {
			t.Errorf("the document and uds inspect %s as %s (-document +uds): %s\n%s", tt.path, tt.user, d, stderr)
		}
	}
}

func TestLsShowsWhoIsOnTheEnginesSocket(t *testing.T) {
	t.Parallel()
	ls := uds(t)
	path := engineSocket(t)
	client := startConnected(t, filepath.Dir(path), filepath.Base(path), "0",
		withHost(func(h *container.HostConfig) { h.CapDrop = nil }))
	name, pid := client.name(t)
	await(t, "the client to be listed", func() bool {
		var s struct {
			Connections []struct {
				Client *struct {
					Processes []struct {
						PID       int
						Container *struct{ Name string }
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(ls("ls", "--format", "json", path)), &s); err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Connections {
			if c.Client != nil && len(c.Client.Processes) == 1 && c.Client.Processes[0].PID == pid {
				return c.Client.Processes[0].Container != nil && c.Client.Processes[0].Container.Name == name
			}
		}
		return false
	})
}
