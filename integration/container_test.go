package integration

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

const (
	socketPath = "/run/uds/uds_socket"
	address    = "stream:" + socketPath
	message    = "This is the message.  It will be repeated."
)

// newVolume creates a named volume. It is removed after the test and its
// containers.
func newVolume(t *testing.T) string {
	t.Helper()
	v, err := engine.VolumeCreate(t.Context(), volume.CreateOptions{Labels: labels()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.VolumeRemove(context.Background(), v.Name, true); err != nil {
			t.Error(err)
		}
	})
	return v.Name
}

// A box is a container.
type box struct {
	*testcontainers.DockerContainer
}

// start starts a container as compose.yaml does: without a network, with a
// read-only root, without capabilities, with the volume at /run/uds.
func start(t *testing.T, image, volume string, opts ...testcontainers.ContainerCustomizer) box {
	t.Helper()
	all := append([]testcontainers.ContainerCustomizer{
		testcontainers.WithLabels(labels()),
		testcontainers.WithEnv(map[string]string{"UDS_LISTEN": address, "UDS_CONNECT": address, "UDS_MODE": "0660", "UDS_LOG_FORMAT": "plain"}),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.NetworkMode = "none"
			h.ReadonlyRootfs = true
			h.CapDrop = []string{"ALL"}
			h.SecurityOpt = []string{"no-new-privileges"}
			h.Binds = []string{volume + ":/run/uds"}
		}),
	}, opts...)
	c, err := testcontainers.Run(t.Context(), image, all...)
	testcontainers.CleanupContainer(t, c, testcontainers.StopTimeout(0)) // a test of an end stops it itself
	if err != nil {
		if c != nil {
			t.Log(box{c}.output(t))
		}
		t.Fatal(err)
	}
	return box{c}
}

// startServer starts a server and returns when it waits for connections.
func startServer(t *testing.T, volume string, opts ...testcontainers.ContainerCustomizer) box {
	t.Helper()
	ready := testcontainers.WithWaitStrategy(wait.ForLog("waiting for a connection"))
	return start(t, serverImage, volume, append([]testcontainers.ContainerCustomizer{ready}, opts...)...)
}

// tool makes it a container of uds.
var tool = testcontainers.CustomizeRequestOption(func(r *testcontainers.GenericContainerRequest) error {
	r.Image, r.Entrypoint = toolImage, []string{"uds"}
	return nil
})

// runClient runs a client to its end.
func runClient(t *testing.T, volume string, args []string, opts ...testcontainers.ContainerCustomizer) box {
	t.Helper()
	ended := testcontainers.WithWaitStrategy(wait.ForExit().WithExitTimeout(testkit.Patience))
	return start(t, clientImage, volume, append([]testcontainers.ContainerCustomizer{ended, testcontainers.WithCmd(args...)}, opts...)...)
}

// output returns everything that the container has written so far.
func (b box) output(t *testing.T) (stdout, stderr string) {
	t.Helper()
	return logs(t, b.GetContainerID())
}

func logs(t *testing.T, id string) (stdout, stderr string) {
	t.Helper()
	return logsOf(t, engine, id)
}

func logsOf(t *testing.T, engine *client.Client, id string) (stdout, stderr string) {
	t.Helper()
	r, err := engine.ContainerLogs(context.Background(), id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, r); err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String()
}

func (b box) exitCode(t *testing.T) int {
	t.Helper()
	state, err := b.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if state.Running {
		t.Fatal("the container is still running")
	}
	return state.ExitCode
}

// exec runs a command in the container and returns what it printed.
func (b box) exec(t *testing.T, command ...string) string {
	t.Helper()
	status, out := b.try(t, command)
	if status != 0 {
		t.Fatalf("%s: exit status %d\n%s", strings.Join(command, " "), status, out)
	}
	return out
}

// try runs a command that may fail in the container.
func (b box) try(t *testing.T, command []string, opts ...tcexec.ProcessOption) (status int, out string) {
	t.Helper()
	// Multiplexed reads the output to its end before the engine is asked for the
	// status, which is 0 until the engine has started the command. It also removes
	// the header of each piece of the engine's stream: otherwise that would stand
	// before the first letter that ls prints.
	status, r, err := b.Exec(t.Context(), command, append(opts, tcexec.Multiplexed())...)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// signal sends a signal to the container's process 1.
func (b box) signal(t *testing.T, name string) {
	t.Helper()
	if err := engine.ContainerKill(t.Context(), b.GetContainerID(), name); err != nil {
		t.Fatal(err)
	}
}

// awaitExit returns the exit status of a container that is about to end.
func (b box) awaitExit(t *testing.T) int {
	t.Helper()
	return awaitExit(t, b.GetContainerID())
}

func awaitExit(t *testing.T, id string) int {
	t.Helper()
	ended, failed := engine.ContainerWait(t.Context(), id, container.WaitConditionNotRunning)
	select {
	case e := <-ended:
		return int(e.StatusCode)
	case err := <-failed:
		t.Fatal(err)
		return -1
	}
}

// await polls for a condition that no event reports.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testkit.Patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", testkit.Patience, what)
		}
	}
}

// withHost changes the host configuration of start; WithHostConfigModifier
// would replace it.
func withHost(change func(h *container.HostConfig)) testcontainers.CustomizeRequestOption {
	return func(r *testcontainers.GenericContainerRequest) error {
		before := r.HostConfigModifier
		r.HostConfigModifier = func(h *container.HostConfig) {
			before(h)
			change(h)
		}
		return nil
	}
}

// readOnly mounts the volume as compose.yaml does for clients.
var readOnly = withHost(func(h *container.HostConfig) { h.Binds[0] += ":ro" })

func withUser(user string) testcontainers.CustomizeRequestOption {
	return testcontainers.WithConfigModifier(func(c *container.Config) { c.User = user })
}

// engineSocket returns the path of the engine's socket.
func engineSocket(t *testing.T) string {
	t.Helper()
	path, ok := strings.CutPrefix(engine.DaemonHost(), "unix://")
	if !ok {
		t.Fatalf("the engine is at %s, which is not a Unix socket; unset DOCKER_HOST", engine.DaemonHost())
	}
	return path
}

// transcripts returns the original transcripts, with the path of the volume.
func transcripts(path string) (server, client string) {
	server = `starting up on ` + path + `
waiting for a connection
connection from
received 'This is the mess'
sending data back to the client
received 'age.  It will be'
sending data back to the client
received ' repeated.'
sending data back to the client
received ''
no data from
waiting for a connection
`
	client = `connecting to ` + path + `
sending 'This is the message.  It will be repeated.'
received 'This is the mess'
received 'age.  It will be'
received ' repeated.'
closing socket
`
	return server, client
}

// readme returns the block of the README, or of a document in docs/, that
// follows the comment <!-- test: name -->.
func readme(t *testing.T, name string) string {
	t.Helper()
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range append(documents, "../README.md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		block := regexp.MustCompile("(?s)<!-- test: " + regexp.QuoteMeta(name) + " -->\\s*```\\w*\n(.*?)```").FindSubmatch(text)
		if block != nil {
			return string(block[1])
		}
	}
	t.Fatalf("neither README.md nor docs/ has a block after <!-- test: %s -->", name)
	return ""
}
