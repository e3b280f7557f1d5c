// Package integration tests the stack as its user sees it: through images,
// containers, volumes and the compose file. Of the project it imports only
// what its tests share with other packages.
package integration

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/testcontainers/testcontainers-go"

	"github.com/udsecho/udsecho/internal/testkit"
)

// The images under test. They are kept between runs, so that the next run
// builds only the changes; `make clean` removes them.
const (
	serverImage = "udsecho-test-server:latest"
	clientImage = "udsecho-test-client:latest"
	toolImage   = "udsecho-test-toolbox:latest"
)

// sessionLabel marks everything that a test made, with the process that made
// it.
const sessionLabel = "udsecho.test"

// engine is the API of the Docker Engine.
var engine *client.Client

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("integration: left out by -short")
		return
	}
	testkit.WaitInParallel()
	// go test shows what tests print only at their end.
	if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
		fmt.Fprintln(tty, "integration: building the images, then two minutes of tests with containers")
		_ = tty.Close()
	}
	if err := setUp(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
	status := m.Run()
	if builtDir != "" {
		_ = os.RemoveAll(builtDir)
	}
	os.Exit(status)
}

func setUp(ctx context.Context) (err error) {
	base := exec.CommandContext(ctx, "../tools/offline/base.sh", "-q")
	base.Stdout, base.Stderr = os.Stderr, os.Stderr
	if err := base.Run(); err != nil {
		return fmt.Errorf("base images: %w", err)
	}
	if engine, err = client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation()); err != nil {
		return err
	}
	// Ryuk, which removes what an aborted run leaves, is an image that would
	// have to be pulled. Its work is done at the next start instead.
	//nolint:staticcheck // deprecated, but nothing else tells which image it would be
	if _, err := engine.ImageInspect(ctx, testcontainers.ReaperDefaultImage); err != nil {
		if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
			return err
		}
	}
	if err := removeLeftovers(ctx); err != nil {
		return fmt.Errorf("remove what an aborted run left: %w", err)
	}
	for _, name := range []string{"server", "client", "toolbox"} {
		if err := buildImage(ctx, name); err != nil {
			return fmt.Errorf("build the %s image: %w", name, err)
		}
	}
	return nil
}

// buildImage builds an image as its users do, as a target of the Dockerfile.
func buildImage(ctx context.Context, name string) error {
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	args, err := buildArgs()
	if err != nil {
		return err
	}
	var log strings.Builder
	_, err = provider.BuildImage(ctx, &testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{
			Context:              "..",
			Repo:                 "udsecho-test-" + name,
			Tag:                  "latest",
			BuildArgs:            args,
			KeepImage:            true,
			BuildLogWriter:       &log,
			BuildOptionsModifier: func(o *build.ImageBuildOptions) { o.Target = name },
		},
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, log.String())
	}
	return nil
}

// buildArgs returns the base images that tools/offline/base.sh has chosen.
func buildArgs() (map[string]*string, error) {
	args := map[string]*string{}
	f, err := os.Open("../.env")
	if errors.Is(err, fs.ErrNotExist) {
		return args, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if name != "GO_IMAGE" && name != "BASE_IMAGE" {
			continue
		}
		if v, ok := os.LookupEnv(name); ok {
			value = v
		}
		args[name] = &value
	}
	return args, nil
}

// session names this process so that no later process is mistaken for it.
var session = processSession(os.Getpid())

// processSession returns a process id with the start time of the process, ""
// if there is no such process.
func processSession(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The command, in parentheses, may contain anything; see proc_pid_stat(5).
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return fmt.Sprintf("%d-%s", pid, fields[19])
}

var sessionName = regexp.MustCompile(`^\d+-\d+`)

// aborted reports whether a name begins with the session of a process that no
// longer exists.
func aborted(name string) bool {
	var pid int
	session := sessionName.FindString(name)
	_, err := fmt.Sscanf(session, "%d-", &pid)
	return err == nil && processSession(pid) != session
}

// project returns the compose project of this process; see removeLeftovers.
func project() string { return "udsecho-test-" + session }

func labels() map[string]string { return map[string]string{sessionLabel: session} }

// removeLeftovers removes the containers, volumes and images of aborted runs:
// their processes have ended, and the label on each names its process.
func removeLeftovers(ctx context.Context) error {
	isLeftover := func(labels map[string]string) bool {
		if aborted(labels[sessionLabel]) {
			return true
		}
		ofCompose, ok := strings.CutPrefix(labels["com.docker.compose.project"], "udsecho-test-")
		return ok && aborted(ofCompose)
	}
	containers, err := engine.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return err
	}
	for _, c := range containers {
		if isLeftover(c.Labels) {
			if err := engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
				return err
			}
		}
	}
	volumes, err := engine.VolumeList(ctx, volume.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range volumes.Volumes {
		if isLeftover(v.Labels) {
			if err := engine.VolumeRemove(ctx, v.Name, true); err != nil {
				return err
			}
		}
	}
	return removeImages(ctx, func(tag string) bool { return aborted(strings.TrimPrefix(tag, "udsecho-test-")) })
}

// removeImages removes the images that compose has built for test projects.
func removeImages(ctx context.Context, which func(tag string) bool) error {
	images, err := engine.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", "udsecho-test-*"))})
	if err != nil {
		return err
	}
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if which(tag) {
				if _, err := engine.ImageRemove(ctx, tag, image.RemoveOptions{}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
