package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

// A node is a Docker Engine with its own process tree, network, host name and
// mounts.
type node struct {
	name   string
	number int
	addr   string
	dir    string // of its files
	cmd    *exec.Cmd
	tell   io.WriteCloser
	api    *client.Client
}

// startNode starts node number (from 1) and waits for its engine to answer.
func startNode(ctx context.Context, number int) (_ *node, err error) {
	n := &node{name: fmt.Sprintf("node-%d", number), number: number, addr: fmt.Sprintf("10.77.0.%d", number)}
	n.dir = filepath.Join(labDir, n.name)
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, err
	}
	if n.api, err = client.NewClientWithOpts(client.WithHost(n.host()), client.WithAPIVersionNegotiation()); err != nil {
		return nil, err
	}
	log, err := os.Create(n.log())
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	config, err := filepath.Abs("deploy/daemon.json")
	if err != nil {
		return nil, err
	}
	n.cmd = exec.Command("/proc/self/exe", "node", n.name, "dockerd",
		"--host", n.host(),
		"--config-file", config,
		"--data-root", n.dir+"/data",
		"--exec-root", n.dir+"/exec",
		"--pidfile", n.dir+"/pid",
		"--storage-driver", "vfs", // works on every file system
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/"+labGroup+"/"+n.name)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Unshareflags: unix.CLONE_NEWNS,
	}
	if n.tell, err = n.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	if err := n.connect(ctx); err != nil {
		return n, err
	}
	return n, n.startEngine(ctx)
}

func (n *node) host() string { return "unix://" + n.dir + "/docker.sock" }
func (n *node) log() string  { return n.dir + "/dockerd.log" }
func (n *node) link() string { return n.name }

// connect gives the node its link to the others, as a cable to a switch.
func (n *node) connect(ctx context.Context) error {
	pid := fmt.Sprint(n.cmd.Process.Pid)
	for _, line := range []string{
		"ip link add " + n.link() + " type veth peer name eth0 netns " + pid,
		"ip link set " + n.link() + " master nodes up",
		"nsenter -t " + pid + " -n ip link set lo up",
		"nsenter -t " + pid + " -n ip address add " + n.addr + "/24 dev eth0",
		"nsenter -t " + pid + " -n ip link set eth0 up",
	} {
		if _, err := run(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// startEngine starts the node's engine and waits for its first answer.
func (n *node) startEngine(ctx context.Context) error {
	if _, err := io.WriteString(n.tell, "start\n"); err != nil {
		return err
	}
	err := await(ctx, "start the engine of "+n.name, func() (bool, error) {
		_, err := n.api.Ping(ctx)
		return err == nil, err
	})
	if err != nil {
		if text, _ := os.ReadFile(n.log()); len(text) > 0 {
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			err = fmt.Errorf("%w; its last word: %s", err, lines[len(lines)-1])
		}
	}
	return err
}

// killEngine kills the engine with SIGKILL, and waits until it no longer
// answers. The containers are not its children and continue to run.
func (n *node) killEngine(ctx context.Context) error {
	if _, err := io.WriteString(n.tell, "kill\n"); err != nil {
		return err
	}
	return await(ctx, "kill the engine of "+n.name, func() (bool, error) {
		_, err := n.api.Ping(ctx)
		return err != nil, nil
	})
}

// stop ends the node and everything on it, as pulling the plug would.
func (n *node) stop() {
	_ = n.tell.Close()
	_ = n.cmd.Wait()
	_ = n.api.Close()
	// The kernel removes the link too, but later.
	_, _ = run(context.Background(), "ip", "link", "delete", n.link())
	_ = os.RemoveAll(n.dir)
}

// nodeCmd is process 1 of a node. Commands on its standard input start and
// kill the engine. At the end of the input it ends, and the node with it.
type nodeCmd struct {
	Name   string   `arg:""`
	Engine []string `arg:"" passthrough:""`
}

// Run runs a node until its end.
func (c *nodeCmd) Run() error {
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return os.NewSyscallError("mount proc", err)
	}
	path, err := exec.LookPath(c.Engine[0])
	if err != nil {
		return err
	}
	go reap()
	var engine *os.Process
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "start":
			engine, err = os.StartProcess(path, c.Engine, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, os.Stdout, os.Stderr}})
		case "kill":
			err = engine.Kill()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reap does the duty of process 1: it collects the exit status of orphans.
func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, 0, nil); pid < 0 && err == unix.ECHILD {
			time.Sleep(100 * time.Millisecond) // there is no child yet
		}
	}
}
