package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

func TestEchoCrossesContainersThatShareNothingButAVolume(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startServer(t, volume)
	client := runClient(t, volume, nil)

	out, events := client.output(t)
	if code := client.exitCode(t); code != 0 || out != message {
		t.Errorf("client: exit %d, output %q, want 0 and %q", code, out, message)
	}
	wantServer, wantClient := transcripts(socketPath)
	if d := cmp.Diff(wantClient, events); d != "" {
		t.Errorf("client's transcript (-want +got):\n%s", d)
	}
	await(t, "the server to wait again", func() bool {
		_, events := server.output(t)
		return strings.Count(events, "waiting for a connection") == 2
	})
	if _, events := server.output(t); events != wantServer {
		t.Errorf("server's transcript (-want +got):\n%s", cmp.Diff(wantServer, events))
	}
	for _, b := range []box{server, client} {
		if networks, err := b.Networks(t.Context()); err != nil || len(networks) != 1 || networks[0] != "none" {
			t.Errorf("networks: %v, %v; want none", networks, err)
		}
	}
	row := server.exec(t, "ls", "-l", socketPath)
	if !strings.HasPrefix(row, "srw-rw----") || !strings.Contains(row, "10001") || !strings.Contains(row, "10000") {
		t.Errorf("ls -l: %q, want a socket of 10001:10000 with mode 0660", row)
	}
}

func TestLsShowsTheLetterOfEachFileType(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := start(t, serverImage, volume, withUser("0"),
		testcontainers.WithEnv(map[string]string{"UDS_LISTEN": "stream:./socket"}),
		testcontainers.WithWaitStrategy(wait.ForLog("waiting for a connection")),
		withHost(func(h *container.HostConfig) { h.CapDrop = nil })) // mknod needs one
	rows := server.exec(t, "sh", "-c", `
		touch regular && mkdir directory && ln -s regular link &&
		mknod character c 1 3 && mknod block b 7 0 && mkfifo pipe && ls -l`)
	letters := map[string]string{
		"regular": "-", "directory": "d", "link": "l", "character": "c", "block": "b", "socket": "s", "pipe": "p",
	}
	for name, letter := range letters {
		found := false
		for row := range strings.Lines(rows) {
			if strings.Contains(strings.TrimSpace(row)+" ", " "+name+" ") {
				found = strings.HasPrefix(row, letter)
			}
		}
		if !found {
			t.Errorf("no row of %s starts with %q:\n%s", name, letter, rows)
		}
	}
}

func TestTwentyClientsAtOnceEachGetTheirOwnBytes(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	startServer(t, volume)
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			want := fmt.Sprintf("message of client %d, longer than one chunk", i)
			client := runClient(t, volume, []string{want})
			if out, events := client.output(t); out != want {
				t.Errorf("client %d: got %q, want %q\n%s", i, out, want, events)
			}
		})
	}
	clients.Wait()
}

func TestClientWaitsForAServerThatStartsLater(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	client := start(t, clientImage, volume, testcontainers.WithCmd("--retry", "1m"),
		testcontainers.WithWaitStrategy(wait.ForLog("connecting to")))
	startServer(t, volume)
	if code := client.awaitExit(t); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
	if out, events := client.output(t); out != message {
		t.Errorf("got %q, want %q\n%s", out, message, events)
	}
}

func TestServerReplacesTheFileThatAKilledOneLeft(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	first := startServer(t, volume)
	first.signal(t, "KILL")
	first.awaitExit(t)

	refused := runClient(t, volume, nil)
	if _, events := refused.output(t); refused.exitCode(t) != 1 || !strings.Contains(events, "ECONNREFUSED") {
		t.Errorf("client of the dead server: exit %d, want 1 and ECONNREFUSED:\n%s", refused.exitCode(t), events)
	}
	startServer(t, volume)
	if out, events := runClient(t, volume, nil).output(t); out != message {
		t.Errorf("got %q, want %q\n%s", out, message, events)
	}
}

func TestSecondServerOnTheVolumeIsRefused(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	startServer(t, volume)
	second := start(t, serverImage, volume, testcontainers.WithWaitStrategy(wait.ForExit()))
	if _, events := second.output(t); second.exitCode(t) != 1 || !strings.Contains(events, "in use") {
		t.Errorf("exit %d, want 1 and that the address is in use:\n%s", second.exitCode(t), events)
	}
	if out, events := runClient(t, volume, nil).output(t); out != message {
		t.Errorf("the first server: got %q, want %q\n%s", out, message, events)
	}
}

func TestServerLeavesNoFileOnSIGTERM(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startServer(t, volume)
	server.signal(t, "TERM")
	if code := server.awaitExit(t); code != 0 {
		_, events := server.output(t)
		t.Errorf("exit %d, want 0\n%s", code, events)
	}
	other := start(t, serverImage, volume, testcontainers.WithEntrypoint("ls", "-A", "/run/uds"),
		testcontainers.WithWaitStrategy(wait.ForExit()))
	if out, _ := other.output(t); out != "" {
		t.Errorf("left in the volume:\n%s", out)
	}
}

func TestClientOfAnotherGroupIsDenied(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	startServer(t, volume)
	stranger := runClient(t, volume, nil, withUser("10003:10003"))
	out, events := stranger.output(t)
	if stranger.exitCode(t) != 1 || out != "" || !strings.Contains(events, "permission denied") {
		t.Errorf("exit %d, output %q, want 1, none and permission denied:\n%s", stranger.exitCode(t), out, events)
	}
}

func TestAbstractAddressDoesNotCrossContainers(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	abstract := testcontainers.WithEnv(map[string]string{"UDS_LISTEN": "stream:@echo", "UDS_CONNECT": "stream:@echo"})
	server := startServer(t, volume, abstract)
	client := runClient(t, volume, nil, abstract)
	if _, events := client.output(t); client.exitCode(t) != 1 || !strings.Contains(events, "ECONNREFUSED") {
		t.Errorf("exit %d, want 1 and ECONNREFUSED:\n%s", client.exitCode(t), events)
	}
	if _, events := server.output(t); !strings.Contains(events, "clients in other containers do not find it") {
		t.Errorf("the server does not warn:\n%s", events)
	}
	// In the server's own network namespace the name exists.
	server.exec(t, "server", "healthcheck")
}

func TestHealthCheckFailsWhenTheServerIsPaused(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startServer(t, volume, testcontainers.WithConfigModifier(func(c *container.Config) {
		c.Healthcheck = &container.HealthConfig{
			Test: []string{"CMD", "server", "healthcheck"}, Interval: time.Second, Timeout: 3 * time.Second, Retries: 1,
		}
	}))
	status := func(want string) func() bool {
		return func() bool {
			state, err := server.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return state.Health != nil && state.Health.Status == want
		}
	}
	await(t, "the server to be healthy", status(container.Healthy))
	// SIGSTOP stops the server alone: the engine checks no health in a
	// container that is paused as a whole.
	server.signal(t, "STOP")
	await(t, "the stopped server to be unhealthy", status(container.Unhealthy))
	server.signal(t, "CONT")
	await(t, "the server to be healthy again", status(container.Healthy))
	if _, events := server.output(t); strings.Contains(events, "connection from") {
		t.Errorf("the health checks show up in the transcript:\n%s", events)
	}
}

func TestClientsNameDistinguishesClients(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startServer(t, volume, testcontainers.WithEnv(map[string]string{"UDS_LOG_FORMAT": "json"}))
	for range 2 {
		if out, events := runClient(t, volume, []string{"--bind", "auto"}).output(t); out != message {
			t.Fatalf("got %q, want %q\n%s", out, message, events)
		}
	}
	names := map[string]bool{}
	_, events := server.output(t)
	for line := range strings.Lines(events) {
		if _, rest, ok := strings.Cut(line, `"peer":"`); ok && strings.Contains(line, "connection from") {
			name, _, _ := strings.Cut(rest, `"`)
			names[name] = true
			if !strings.Contains(line, `"uid":10002`) || !strings.Contains(line, `"pid":"unknown"`) {
				t.Errorf("no peer credentials in %s", line)
			}
		}
	}
	if len(names) != 2 {
		t.Errorf("names of two clients: %v", names)
	}
	if left := server.exec(t, "ls", "-A", "/run/uds"); left != ".uds_socket.lock\nuds_socket\n" {
		t.Errorf("left in the volume:\n%s", left)
	}
}
