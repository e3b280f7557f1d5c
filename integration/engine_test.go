package integration

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// An ownEngine is a Docker Engine that a test may kill, on a node of
// deploy/lab/lab.sh: it does not meet the machine's engine (whose bridge it would
// remove), and all that it makes is gone with the node's process 1.
type ownEngine struct {
	*client.Client
	tell io.Writer // to process 1, a shell
	root string    // of its file system, as seen from outside
}

// The engine starts; ends alone, while its containers live on; and ends with all
// of the node's processes.
var engineCommands = map[string]string{
	"start": "engine " + project() + " --log-level warn --bridge none --iptables=false",
	"crash": "crash dockerd containerd",
	"cut":   "power_cut",
}

const volumes = "/var/lib/docker/volumes"

func startOwnEngine(t *testing.T) *ownEngine {
	t.Helper()
	testkit.NeedRoot(t, "to start an engine that may be killed")
	for _, program := range [][2]string{{"dockerd", "docker.io"}, {"containerd", "containerd"}, {"runc", "runc"}, {"bash", "bash"}} {
		testkit.Need(t, program[0], program[1])
	}
	init := exec.Command("../deploy/lab/lab.sh", "node", project())
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS, Unshareflags: unix.CLONE_NEWNS}
	var errs bytes.Buffer
	init.Stderr = &errs
	said, err := init.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	tell, err := init.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := init.Start(); err != nil {
		t.Fatal(err)
	}
	e := &ownEngine{tell: tell, root: fmt.Sprintf("/proc/%d/root", init.Process.Pid)}
	t.Cleanup(func() {
		log, _ := os.ReadFile(e.root + "/var/log/dockerd.log")
		_ = tell.Close() // the shell ends, and the kernel kills all that it started
		_ = init.Wait()
		if t.Failed() {
			t.Logf("the engine says:\n%s%s", &errs, log)
		}
		await(t, "the control groups to be empty", func() bool {
			return exec.Command("../deploy/lab/lab.sh", "remove_groups", project()).Run() == nil
		})
	})
	// Before the node has its folders, /run is the machine's.
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		t.Fatalf("start a node: %v\n%s", err, &errs)
	}
	if e.Client, err = client.NewClientWithOpts(client.WithHost("unix://"+e.root+"/run/docker.sock"), client.WithAPIVersionNegotiation()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	e.do(t, "start")
	e.load(t, serverImage, clientImage)
	return e
}

// do has the shell start or end the engine.
func (e *ownEngine) do(t *testing.T, command string) {
	t.Helper()
	if _, err := io.WriteString(e.tell, engineCommands[command]+"\n"); err != nil {
		t.Fatal(err)
	}
	await(t, command+" of the engine", func() bool {
		_, err := e.Ping(t.Context())
		return (err == nil) == (command == "start")
	})
}

// load brings images over from the machine's engine.
func (e *ownEngine) load(t *testing.T, images ...string) {
	t.Helper()
	saved, err := engine.ImageSave(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = saved.Close() }()
	loaded, err := e.ImageLoad(t.Context(), saved)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = loaded.Body.Close() }()
	if _, err := io.Copy(io.Discard, loaded.Body); err != nil {
		t.Fatal(err)
	}
}

// service makes and starts a container as compose.yaml does.
func (e *ownEngine) service(t *testing.T, name string, c container.Config) {
	t.Helper()
	c.Env = []string{"UDS_LISTEN=" + address, "UDS_CONNECT=" + address, "UDS_MODE=0660", "UDS_CHUNK=65536", "UDS_LOG_LEVEL=warn", "UDS_RETRY=1m"}
	_, err := e.ContainerCreate(t.Context(), &c, &container.HostConfig{
		NetworkMode: "none", ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"},
		Binds: []string{"sockets:/run/uds"}, RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyAlways},
	}, nil, nil, name)
	if err == nil {
		err = e.ContainerStart(t.Context(), name, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// up starts the stack: a server, and a client that asks for one echo after the
// other.
func (e *ownEngine) up(t *testing.T) {
	t.Helper()
	if _, err := e.VolumeCreate(t.Context(), volume.CreateOptions{Name: "sockets"}); err != nil {
		t.Fatal(err)
	}
	e.service(t, "server", container.Config{Image: serverImage, Healthcheck: &container.HealthConfig{
		Test: []string{"CMD", "server", "healthcheck"}, Interval: time.Second, Timeout: 3 * time.Second, Retries: 3,
	}})
	e.service(t, "client", container.Config{Image: clientImage, StopSignal: "KILL", Entrypoint: []string{"sh", "-euc", "while client again; do echo; sleep 0.1; done"}})
}

// serves waits until the server is healthy and the client has had echoes, of
// runs that are not those before.
func (e *ownEngine) serves(t *testing.T, before map[string]string) (now map[string]string) {
	t.Helper()
	echoes, _ := logsOf(t, e.Client, "client")
	now = map[string]string{}
	await(t, "the stack to serve", func() bool {
		for _, name := range []string{"server", "client"} {
			c, err := e.ContainerInspect(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if now[name] = c.State.StartedAt; !c.State.Running || now[name] == before[name] || c.State.Health != nil && c.State.Health.Status != container.Healthy {
				return false
			}
		}
		more, _ := logsOf(t, e.Client, "client")
		return strings.Count(more, "again\n") >= strings.Count(echoes, "again\n")+3
	})
	return now
}

// A hostTransfer is as a transfer, by a client outside a container.
type hostTransfer struct {
	client     *exec.Cmd
	errs       bytes.Buffer
	sent, back hash.Hash
	parts      atomic.Int64
	stop, done chan struct{}
}

func startHostTransfer(t *testing.T, path string) *hostTransfer {
	t.Helper()
	tr := &hostTransfer{sent: md5.New(), back: md5.New(), stop: make(chan struct{}), done: make(chan struct{})}
	tr.client = exec.CommandContext(t.Context(), programs(t)+"/client", "--log-level", "warn", "--chunk", "65536", "--retry", "1m", "--connect", path, "-")
	tr.client.Stdout, tr.client.Stderr = tr.back, &tr.errs
	in, err := tr.client.StdinPipe()
	if err == nil {
		err = tr.client.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(tr.done)
		defer func() { _ = in.Close() }()
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		part := make([]byte, 1_000_000)
		for {
			select {
			case <-tr.stop:
				return
			case <-pace.C:
			}
			_, _ = rand.Read(part)
			_, _ = tr.sent.Write(part)
			if _, err := in.Write(part); err != nil {
				return
			}
			tr.parts.Add(1)
		}
	}()
	tr.goesOn(t)
	return tr
}

func (tr *hostTransfer) goesOn(t *testing.T) {
	t.Helper()
	before := tr.parts.Load()
	await(t, "the transfer to continue", func() bool { return tr.parts.Load() >= before+3 })
}

// end ends a transfer that has to have been broken at least so often.
func (tr *hostTransfer) end(t *testing.T, breaks int) {
	t.Helper()
	close(tr.stop)
	<-tr.done
	err := tr.client.Wait()
	if err != nil || !bytes.Equal(tr.sent.Sum(nil), tr.back.Sum(nil)) || strings.Count(tr.errs.String(), "connecting again") < breaks {
		t.Errorf("the echo is not what was sent, or nothing broke: %v\n%s", err, &tr.errs)
	}
}

func TestF35StackComesBackByItself(t *testing.T) {
	t.Parallel()
	const again = 3
	ends := []string{"crash", "cut"}
	t.Run("engine restarts and volume goes", func(t *testing.T) {
		t.Parallel()
		e := startOwnEngine(t)
		e.up(t)
		runs := e.serves(t, nil)
		sockets := e.root + volumes + "/sockets/_data"
		tr := startHostTransfer(t, sockets+"/uds_socket")
		for _, end := range ends {
			e.do(t, end)
			e.do(t, "start")
			runs = e.serves(t, runs)
			tr.goesOn(t)
		}
		tr.end(t, len(ends))

		for _, name := range []string{"client", "server"} {
			if err := e.ContainerStop(t.Context(), name, container.StopOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		// A stopped container keeps its volume.
		if err := e.VolumeRemove(t.Context(), "sockets", true); err == nil {
			t.Error("the engine removes a volume that a stopped container has")
		}
		if err := os.RemoveAll(sockets); err != nil {
			t.Fatal(err)
		}
		err := e.ContainerStart(t.Context(), "server", container.StartOptions{})
		if err == nil || !strings.Contains(err.Error(), volumes+"/sockets/_data") {
			t.Errorf("start without the volume's directory: %v", err)
		}
		for _, name := range []string{"client", "server"} {
			if err := e.ContainerRemove(t.Context(), name, container.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.VolumeRemove(t.Context(), "sockets", true); err != nil {
			t.Fatal(err)
		}
		e.up(t)
		e.serves(t, runs)
	})
	t.Run("container is recreated", func(t *testing.T) {
		t.Parallel()
		volume := newVolume(t)
		server := startQuietServer(t, volume)
		tr := startTransfer(t, volume, []string{"--retry", "1m"})
		for range again {
			if err := engine.ContainerRemove(t.Context(), server.GetContainerID(), container.RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			server = startQuietServer(t, volume)
			tr.goesOn(t)
		}
		if events := tr.end(t); strings.Count(events, "connecting again") < again {
			t.Errorf("the client says:\n%s", events)
		}
	})
	t.Cleanup(func() { // after the parallel parts
		testkit.ReportFault(t, testkit.FaultRow{
			ID: "F35", Count: len(ends) + again + 1,
			Done: "an engine is killed, and then with all its containers, and started; a server's container is removed and recreated; " +
				"the volume is removed while the stack is stopped; a transfer with `--retry` runs meanwhile",
			Outcome: "the stack serves again by itself, 2 transfers are byte-identical; a volume whose directory is gone is named by the engine",
		})
	})
}
