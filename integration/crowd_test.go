package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

// shipped gives a container the limits that compose.yaml has beside those of
// start.
var shipped = withHost(func(h *container.HostConfig) {
	h.Memory = 64 << 20
	processes := int64(64)
	h.PidsLimit = &processes
})

// A crowd is clients that send and never read, in a container or beside it, or
// one that asks for one echo after the other; see package crowd.
type crowd interface {
	end(t *testing.T) (report string)
}

type boxCrowd struct{ box }

func (c boxCrowd) end(t *testing.T) string {
	t.Helper()
	c.signal(t, "TERM")
	code := c.awaitExit(t)
	out, errs := c.output(t)
	if code != 0 {
		t.Errorf("crowd: exit %d\n%s%s", code, out, errs)
	}
	return out
}

// crowdIn starts program in a container of its own, as a client of the stack,
// and returns when it is ready.
func crowdIn(t *testing.T, volume, program, user string, args ...string) crowd {
	t.Helper()
	writable := withHost(func(h *container.HostConfig) { h.ReadonlyRootfs = false }) // to put the program there
	return boxCrowd{start(t, clientImage, volume, readOnly, writable, withUser(user), testcontainers.WithEntrypoint("/crowd"), testcontainers.WithCmd(args...),
		testcontainers.WithFiles(testcontainers.ContainerFile{HostFilePath: program, ContainerFilePath: "/crowd", FileMode: 0o755}),
		testcontainers.WithWaitStrategy(wait.ForLog("ready").WithStartupTimeout(2*testkit.Patience)))}
}

type hostCrowd struct{ *testkit.Process }

func (c hostCrowd) end(t *testing.T) string {
	t.Helper()
	if status := c.Terminate(t); status != 0 {
		t.Errorf("crowd: exit status %d\n%s%s", status, &c.Out, &c.Err)
	}
	return c.Out.String()
}

// crowdOnHost starts program as a user of the machine, in the volume's group.
// Its paths are relative to the volume.
func crowdOnHost(t *testing.T, volume, program string, user uint32, args ...string) crowd {
	t.Helper()
	testkit.NeedRoot(t, "to be another user, and to reach the volume")
	v, err := engine.VolumeInspect(t.Context(), volume)
	testkit.Check(t, err)
	d, err := os.Open(v.Mountpoint)
	if err != nil {
		testkit.Missing(t, "an engine with the files of this process", "run the tests where the engine runs, outside of containers and chroots")
	}
	defer func() { _ = d.Close() }()
	args[len(args)-2] = "/proc/self/fd/3/" + args[len(args)-2] // that user cannot enter the engine's directory
	p := testkit.Prepare(t, "/", append([]string{program}, args...)...)
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: 10000}}
	p.Cmd.ExtraFiles = []*os.File{d}
	p.Start(t)
	p.Out.Await(t, 1, "ready")
	return hostCrowd{p}
}

// Crowds as large as one user's share of the connections, on the stack with
// the limits of compose.yaml.
func TestF55NoCrowdWithinTheLimitsKillsAContainer(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	program := d + "/crowd"
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./crowd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hold := testkit.Count(0, time.Minute)
	const share, askers = 900, 300
	var mu sync.Mutex
	clients, echoes, checks := 0, 0, 0
	var p99 time.Duration

	// survives lets a crowd do what it can, and wants all of boxes to serve
	// others meanwhile: health checks in the first, echoes at path.
	survives := func(t *testing.T, n int, network, path, volume string, boxes []box, start func() crowd) {
		t.Helper()
		states := func() (all []string) {
			for _, b := range boxes {
				c, err := engine.ContainerInspect(t.Context(), b.GetContainerID())
				testkit.Check(t, err)
				all = append(all, fmt.Sprintf("running: %v, killed for memory: %v, restarts: %d, since %s", c.State.Running, c.State.OOMKilled, c.RestartCount, c.State.StartedAt))
			}
			return all
		}
		before := fmt.Sprint(states())
		unchanged := func() {
			t.Helper()
			if after := states(); fmt.Sprint(after) != before {
				for _, b := range boxes {
					_, events := b.output(t)
					t.Log(events[max(0, len(events)-1000):])
				}
				t.Fatalf("before the crowd %s, now %s", before, after)
			}
		}
		other := crowdIn(t, volume, program, "10003:10000", "echo", network, path)
		theirs := start()
		healthy := 0
		for began := time.Now(); healthy < 3 || time.Since(began) < hold; healthy++ {
			unchanged()
			if status, out := boxes[0].try(t, []string{"server", "healthcheck", "--timeout", testkit.Patience.String()}); status != 0 {
				unchanged()
				t.Fatalf("health check %d: exit status %d, %s", healthy, status, out)
			}
		}
		unchanged()
		report := other.end(t)
		t.Logf("the other user: %sthe crowd: %s", report, theirs.end(t))
		unchanged()
		if c, err := engine.ContainerInspect(t.Context(), boxes[0].GetContainerID()); err != nil || c.State.Health.Status != container.Healthy {
			t.Errorf("%v, the engine's own checks: %+v", err, c.State.Health)
		}
		counted := regexp.MustCompile(`(\d+) echoes, p99 (.+)`).FindStringSubmatch(report)
		if counted == nil {
			t.Fatalf("the other user's echoes: %s", report)
		}
		answered, err := strconv.Atoi(counted[1])
		testkit.Check(t, err)
		slow, err := time.ParseDuration(counted[2])
		testkit.Check(t, err)
		mu.Lock()
		defer mu.Unlock()
		clients, echoes, checks, p99 = clients+n, echoes+answered, checks+healthy, max(p99, slow)
	}
	serving := func(t *testing.T, volume string, env map[string]string) box {
		t.Helper()
		all := map[string]string{"UDS_LISTEN": everyType + ",files:/run/uds/f", "UDS_LOG_LEVEL": "warn"}
		for name, value := range env {
			all[name] = value
		}
		return start(t, serverImage, volume, shipped, testcontainers.WithEnv(all),
			testcontainers.WithConfigModifier(func(c *container.Config) {
				c.Healthcheck = &container.HealthConfig{
					Test: []string{"CMD", "server", "healthcheck", "--timeout", testkit.Patience.String()}, Interval: time.Second, Timeout: testkit.Patience, Retries: 3,
				}
			}), testcontainers.WithWaitStrategy(wait.ForHealthCheck()))
	}
	for network, name := range map[string]string{"unix": "s", "unixpacket": "q"} {
		if network == "unix" && !testkit.Stress() {
			continue
		}
		t.Run(network+" from a container", func(t *testing.T) {
			t.Parallel()
			volume := newVolume(t)
			path := "/run/uds/" + name
			survives(t, share, network, path, volume, []box{serving(t, volume, nil)}, func() crowd {
				return crowdIn(t, volume, program, "10002:10000", "flood", network, path, fmt.Sprint(share))
			})
		})
		t.Run(network+" from the host", func(t *testing.T) {
			testkit.StressOnly(t)
			t.Parallel()
			volume := newVolume(t)
			survives(t, share, network, "/run/uds/"+name, volume, []box{serving(t, volume, nil)}, func() crowd {
				return crowdOnHost(t, volume, program, 10004, "flood", network, name, fmt.Sprint(share))
			})
		})
		t.Run(network+" through a relay", func(t *testing.T) {
			t.Parallel()
			volume := newVolume(t)
			// To the server the relay's clients are one user.
			server := serving(t, volume, map[string]string{"UDS_MAX_PER_USER": "0"})
			kind := map[string]string{"unix": "stream:", "unixpacket": "seqpacket:"}[network]
			relay := start(t, clientImage, volume, shipped, withUser("10001:10000"),
				tool, testcontainers.WithCmd("forward", "--listen", kind+"/run/uds/r", "--connect", kind+"/run/uds/"+name), testcontainers.WithWaitStrategy(wait.ForLog("waiting for a ")))
			survives(t, share, network, "/run/uds/r", volume, []box{server, relay}, func() crowd {
				return crowdIn(t, volume, program, "10002:10000", "flood", network, "/run/uds/r", fmt.Sprint(share))
			})
		})
	}
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		volume := newVolume(t)
		survives(t, askers, "unix", "/run/uds/s", volume, []box{serving(t, volume, nil)}, func() crowd {
			return crowdIn(t, volume, program, "10002:10000", "files", "/run/uds/f", fmt.Sprint(askers))
		})
	})
	t.Cleanup(func() { // after the parallel parts
		testkit.ReportFault(t, testkit.FaultRow{
			ID: "F55", Count: clients,
			Done: "in the limits of compose.yaml, 64 MiB each: crowds of one user, clients that send and never read, of streams and seqpacket, from a container, from the host, and through a relay; and for files",
			Outcome: fmt.Sprintf("no container killed; %d health checks in the crowds, all well; another user's %d echoes all came, p99 %.1f ms at most",
				checks, echoes, float64(p99.Microseconds())/1000),
		})
	})
}
