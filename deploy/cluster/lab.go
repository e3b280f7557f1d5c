package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
)

const (
	// labDir is the directory of the nodes' files, in memory. Only the nodes
	// see the mount; outside, the folder stays empty. It is locked, as there
	// is one cluster at a time.
	labDir   = "/run/udsecho-cluster"
	labSize  = "3g"
	labGroup = "udsecho-cluster" // the parent of the containers' cgroups
	inside   = "UDSECHO_CLUSTER_INSIDE"
)

// programs are the other programs that a cluster needs, with their Debian
// packages.
var programs = [][2]string{
	{"docker", "docker-cli"}, {"dockerd", "docker.io"}, {"containerd", "containerd"}, {"runc", "runc"},
	{"ip", "iproute2"}, {"iptables", "iptables"}, {"nsenter", "util-linux"},
}

// inLab runs story in namespaces of its own, and leaves nothing behind. For
// that the program starts itself a second time: a thread cannot enter a PID
// namespace.
func inLab(ctx context.Context, std cli.Std, story func() error) error {
	if os.Getenv(inside) != "" {
		err := setUpLab(ctx)
		if err == nil {
			err = story()
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx) // the reason for all other errors
		}
		if err != nil { // the process outside reports it
			_, err = io.WriteString(os.NewFile(3, "report"), err.Error())
		}
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for namespaces and engines of its own: sudo make cluster-demo; " +
			"or take the one node that you have: make images && docker swarm init && docker stack deploy --resolve-image never -c deploy/swarm.yaml udsecho")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p[0]); err != nil {
			return fmt.Errorf("the program %s is missing: install the package %s", p[0], p[1])
		}
	}
	unlock, err := lockLab()
	if err != nil {
		return err
	}
	defer unlock()
	// A run that was killed leaves empty groups.
	if err := removeGroups(); err != nil {
		return err
	}
	fmt.Fprintln(std.Err, "--- building the images (some minutes the first time, seconds later)")
	build := exec.CommandContext(ctx, "images/build.sh")
	build.Stdout, build.Stderr = std.Err, std.Err
	if err := build.Run(); err != nil {
		return fmt.Errorf("images/build.sh: %w", err)
	}
	return errors.Join(enterLab(ctx, std), removeGroups())
}

// lockLab makes the folder, which belongs to this process until unlock.
func lockLab() (unlock func(), err error) {
	if err := os.Mkdir(labDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := os.Open(labDir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("in use: another cluster holds %s; wait for its end, or stop it", labDir)
	}
	return func() {
		_ = os.Remove(labDir) // otherwise it is not empty, or not ours
		_ = dir.Close()
	}, nil
}

// enterLab starts this program in new namespaces and waits for it. The new
// process is process 1 of its PID namespace: when it ends, the kernel kills
// all processes in there.
func enterLab(ctx context.Context, std cli.Std) error {
	report, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = report.Close() }()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = std.Out, std.Err
	cmd.ExtraFiles = []*os.File{write}
	runtime.LockOSThread() // Pdeathsig acts at the end of the thread, not of the process
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Unshareflags: unix.CLONE_NEWNS, // and Go makes the mounts private
		Pdeathsig:    unix.SIGKILL,
	}
	err = cmd.Start()
	_ = write.Close()
	if err != nil {
		return fmt.Errorf("make namespaces: %w: as root, and in a container with --privileged", err)
	}
	text, _ := io.ReadAll(report)
	err = cmd.Wait()
	if len(text) > 0 {
		return errors.New(string(text))
	}
	return err
}

func setUpLab(ctx context.Context) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return os.NewSyscallError("mount proc", err)
	}
	if err := unix.Mount("nodes", labDir, "tmpfs", 0, "mode=0700,size="+labSize); err != nil {
		return os.NewSyscallError("mount "+labDir, err)
	}
	// Swarm asks a registry before it uses the local image. The nodes cannot
	// reach one, and this makes the request fail at once.
	resolver := filepath.Join(labDir, "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolver, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return os.NewSyscallError("mount /etc/resolv.conf", err)
	}
	for _, line := range []string{"ip link set lo up", "ip link add nodes type bridge", "ip link set nodes up"} {
		if _, err := run(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// removeGroups removes the cgroups of the nodes, which the kernel keeps after
// their processes have ended.
func removeGroups() error {
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + labGroup)
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + labGroup)
	for _, top := range append(v1, v2...) {
		if _, err := os.Readlink(filepath.Dir(top)); err == nil {
			continue // another name of one of the others, as cpu of cpu,cpuacct
		}
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil {
				return fmt.Errorf("remove the cgroup %s: %w", dir, err)
			}
		}
	}
	return nil
}

// run is for commands with little output.
func run(ctx context.Context, command ...string) (string, error) {
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// patience is the longest time for any step on a slow machine.
const patience = 3 * time.Minute

// await polls until yes returns true. Its error contains the last answer.
func await(ctx context.Context, what string, yes func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	for {
		ok, err := yes()
		if ok {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			if err == nil {
				return fmt.Errorf("%s: %w", what, context.Cause(ctx))
			}
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}
