package integration

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

// socketDir returns a directory of the machine for sockets, with a short path,
// open to all users.
func socketDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	if err == nil {
		err = os.Chmod(d, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// engineBehindARelay returns the directory of a docker.sock that leads to the
// engine.
func engineBehindARelay(t *testing.T, program string) string {
	t.Helper()
	d := socketDir(t)
	// The relay logs nothing after it listens: the socket file shows that it
	// does.
	relay := exec.Command(program, "forward", "--listen", d+"/docker.sock", "--connect", "/var/run/docker.sock", "--mode", "0600")
	if err := relay.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = relay.Process.Signal(os.Interrupt)
		_ = relay.Wait()
	})
	await(t, "the relay", func() bool { _, err := os.Lstat(d + "/docker.sock"); return err == nil })
	return d
}

// The engine's socket is tapped again and again, while `docker run` and others
// use it: none of them fails, also those that run on when the tap ends.
func TestTapOfTheEnginesSocket(t *testing.T) {
	t.Parallel()
	program := programs(t) + "/uds"
	d := engineBehindARelay(t, program)
	docker := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "docker", append([]string{"-H", "unix://" + d + "/docker.sock"}, args...)...)
	}
	in := make([]byte, 1<<20)
	_, _ = rand.Read(in)
	var over atomic.Bool
	var load sync.WaitGroup
	var done [2]atomic.Int64
	for i, run := range []func() error{
		func() error {
			c := docker("run", "--rm", "-i", "--network", "none", "--label", sessionLabel+"="+session, "--entrypoint", "cat", clientImage)
			c.Stdin = bytes.NewReader(in)
			out, err := c.Output()
			if err == nil && !bytes.Equal(out, in) {
				err = fmt.Errorf("%d bytes of %d came back", len(out), len(in))
			}
			return err
		},
		func() error { return docker("ps").Run() },
	} {
		load.Go(func() {
			for !over.Load() {
				if err := run(); err != nil {
					t.Errorf("while the socket is tapped: %v", err)
				}
				done[i].Add(1)
			}
		})
	}
	for range testkit.Count(3, 100) {
		before := done[1].Load()
		tap := testkit.Start(t, d, program, "tap", "docker.sock")
		tap.Err.Await(t, 1, "waiting for a ")
		tap.Out.Await(t, 1, "HTTP/1.1")
		await(t, "a client through the tap", func() bool { return done[1].Load() > before })
		tap.Signal(t, os.Interrupt)
		tap.WantStatus(t, 0)
	}
	over.Store(true)
	load.Wait()
	t.Logf("%d times docker run, %d times docker ps", done[0].Load(), done[1].Load())
}

// `docker run -i` ends its input, and then waits for the output, over one
// connection that it has taken over from HTTP.
func TestDockerAttachesThroughARelay(t *testing.T) {
	t.Parallel()
	program := programs(t) + "/uds"
	d := engineBehindARelay(t, program)
	in := make([]byte, 8<<20)
	_, _ = rand.Read(in)
	docker := exec.CommandContext(t.Context(), "docker", "-H", "unix://"+d+"/docker.sock", "run", "--rm", "-i", "--network", "none",
		"--label", sessionLabel+"="+session, "--entrypoint", "cat", clientImage)
	docker.Stdin = bytes.NewReader(in)
	var errs strings.Builder
	docker.Stderr = &errs
	out, err := docker.Output()
	if err != nil || !bytes.Equal(out, in) {
		t.Errorf("%d bytes of %d came back, %v\n%s", len(out), len(in), err, errs.String())
	}
}

// A container without a network uses one service of another container through
// the socket, and reaches nothing else.
func TestContainerWithoutNetworkUsesOneService(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	join := func(other box) testcontainers.CustomizeRequestOption {
		return withHost(func(h *container.HostConfig) {
			h.NetworkMode = container.NetworkMode("container:" + other.GetContainerID())
		})
	}
	ready := testcontainers.WithWaitStrategy(wait.ForLog("waiting for a connection"))
	web := start(t, clientImage, volume, testcontainers.WithEntrypoint("sh", "-c"),
		testcontainers.WithCmd("echo the page >/dev/shm/page; exec busybox httpd -f -p 127.0.0.1:8080 -h /dev/shm"))
	door := start(t, clientImage, volume, ready, join(web), withUser("10001:10000"),
		tool, testcontainers.WithCmd("forward", "--listen", "/run/uds/web", "--connect", "tcp:127.0.0.1:8080", "--retry", "30s"))
	user := start(t, clientImage, volume, testcontainers.WithEntrypoint("sleep"), testcontainers.WithCmd("600"))
	start(t, clientImage, volume, ready, join(user), readOnly,
		tool, testcontainers.WithCmd("forward", "--listen", "tcp::8080", "--connect", "/run/uds/web", "--require-uid", "10001"))

	if got := user.exec(t, "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/page"); got != "the page\n" {
		t.Errorf("the service gave %q", got)
	}
	// Not by wget -T: Debian's static busybox crashes with it, which proves nothing.
	for other, why := range map[string]string{
		"http://127.0.0.1:8081/": "Connection refused", "http://172.17.0.1/": "Network is unreachable", "http://192.0.2.1/": "Network is unreachable",
	} {
		status, text := user.try(t, []string{"busybox", "wget", "-q", "-O", "-", other})
		if status != 1 || !strings.Contains(text, why) {
			t.Errorf("%s: exit status %d, %q, not %q", other, status, text, why)
		}
	}
	if links := user.exec(t, "ls", "/sys/class/net"); strings.TrimSpace(links) != "lo" {
		t.Errorf("the network has %q", links)
	}
	_, log := door.output(t)
	if !strings.Contains(log, "connection ended") {
		t.Errorf("the relay wrote:\n%s", log)
	}
}

func TestInspectReportsWhyAMountedSocketFileIsDead(t *testing.T) {
	t.Parallel()
	d := socketDir(t)
	volume := newVolume(t)
	bind := withHost(func(h *container.HostConfig) { h.Binds = []string{d + ":/run/uds"} })
	if err := os.WriteFile(d+"/here", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	here := start(t, clientImage, volume, bind, testcontainers.WithEntrypoint("test"), testcontainers.WithCmd("-e", "/run/uds/here"), testcontainers.WithWaitStrategy(wait.ForExit()))
	if here.exitCode(t) != 0 {
		testkit.Missing(t, "an engine with the files of this process", "run the tests where the engine runs, outside of containers and chroots")
	}
	server := startServer(t, volume, withHost(func(h *container.HostConfig) { h.Binds = []string{d + ":/run/uds"} }))
	client := start(t, toolImage, volume, testcontainers.WithEntrypoint("sleep"), testcontainers.WithCmd("600"),
		withHost(func(h *container.HostConfig) { h.Binds = []string{d + "/uds_socket:/run/s"} }))
	inspect := func() string { t.Helper(); return client.exec(t, "uds", "inspect", "/run/s") }
	if got := inspect(); !strings.Contains(got, "  state     live\n") || !strings.Contains(got, "  why       it is itself a mount: when its server starts again and makes a new file, this one stays the old. Mount the directory, not the file\n") {
		t.Error(got)
	}
	patience := 10 * time.Second
	if err := server.Stop(t.Context(), &patience); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantREADME(t, "inspect mounted", inspect())
}
