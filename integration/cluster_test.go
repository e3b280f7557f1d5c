package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

const clusterDir = "/run/udsecho-cluster"

// buildCluster builds the program in a directory where any user may run it.
func buildCluster(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "cluster")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./deploy/cluster")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func TestClusterWithoutRootNamesTheFormThatWorks(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), buildCluster(t))
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 ||
		!strings.Contains(string(out), "needs root") || !strings.Contains(string(out), "docker stack deploy --resolve-image never -c deploy/swarm.yaml udsecho") {
		t.Errorf("exit status %d\n%s", cmd.ProcessState.ExitCode(), out)
	}
}

// First a cluster is killed in the middle. Then another one runs to its end,
// and must handle what the first could not remove.
func TestCluster(t *testing.T) {
	testkit.StressOnly(t)
	testkit.NeedRoot(t, "to make namespaces")
	before := inventory(t)

	program := buildCluster(t)
	killed := exec.CommandContext(t.Context(), program)
	killed.Dir = ".."
	events, err := killed.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(events)
	for !strings.Contains(said.String(), "rolling update") && lines.Scan() {
		said.WriteString(lines.Text() + "\n")
	}
	if lines.Err() != nil || !strings.Contains(said.String(), "rolling update") {
		t.Errorf("the cluster ended before its update: %v\n%s", lines.Err(), said.String())
	}
	second := exec.CommandContext(t.Context(), program)
	second.Dir = ".."
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "in use: another cluster holds "+clusterDir) {
		t.Errorf("a second cluster: %v\n%s", err, out)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // until the last process that could write has ended
	}
	_ = killed.Wait()
	late := time.Now().Add(time.Minute)
	for ; len(processes(t)) > 0 && time.Now().Before(late); time.Sleep(10 * time.Millisecond) {
	}
	left := inventory(t)
	if d := cmp.Diff(before.untouched(), left.untouched()); d != "" {
		t.Errorf("killed, the cluster leaves (-before +after):\n%s", d)
	}
	if len(left.files) > 0 {
		t.Errorf("killed, the cluster leaves files: %v", left.files)
	}

	out := makeTarget(t, "..", "cluster-demo")
	if d := cmp.Diff(before, inventory(t), cmp.AllowUnexported(things{})); d != "" {
		t.Errorf("make cluster-demo leaves (-before +after):\n%s", d)
	}
	if d := cmp.Diff(shape(readme(t, "cluster")), shape(out)); d != "" {
		t.Errorf("README.md and make cluster-demo (-README +make):\n%s", d)
	}
	rows := regexp.MustCompile(`(?m)^│ (node-\d) +│ (node-\d) +│ [0-9a-f]{12} │ +(\d+) │ +(\d+) │$`).FindAllStringSubmatch(out, -1)
	if len(rows) != 3 {
		t.Fatalf("%d nodes in the table, want 3:\n%s", len(rows), out)
	}
	for i, row := range rows {
		// The last node's engine was killed.
		if row[1] != row[2] || row[3] == "0" || i < 2 && row[4] != "0" {
			t.Errorf("a node was not served by itself, or not always: %s", row[0])
		}
	}
	for _, line := range []string{`(?m)^rolling update: .* meanwhile, 0 failed$`, `(?m)^engine of node-3 killed .* on the other nodes \d+ echoes, 0 failed$`} {
		if !regexp.MustCompile(line).MatchString(out) {
			t.Errorf("no line like %s in:\n%s", line, out)
		}
	}
}

// shape removes the parts of the output that differ from run to run.
func shape(s string) string {
	s = regexp.MustCompile(` +[0-9a-f]{12}| +\d+`).ReplaceAllString(s, " N")
	return regexp.MustCompile(`[ ─]+`).ReplaceAllString(s, " ")
}

// things are the things that a cluster could leave behind.
type things struct {
	processes, mounts, links, files []string
	folder, groups                  []string // empty ones, which the next run removes
}

func (l things) untouched() [][]string { return [][]string{l.processes, l.mounts, l.links} }

func inventory(t *testing.T) (left things) {
	t.Helper()
	left.processes = processes(t)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, clusterDir) || strings.Contains(line, "/etc/resolv.conf") {
			left.mounts = append(left.mounts, line)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if link.Name == "nodes" || strings.HasPrefix(link.Name, "node-") {
			left.links = append(left.links, link.Name)
		}
	}
	left.folder, _ = filepath.Glob(clusterDir)
	left.files, _ = filepath.Glob(clusterDir + "/*")
	for _, pattern := range []string{"/sys/fs/cgroup/udsecho-cluster", "/sys/fs/cgroup/*/udsecho-cluster"} {
		groups, _ := filepath.Glob(pattern)
		left.groups = append(left.groups, groups...)
	}
	return left
}

// processes returns the processes that have the cluster's folder in their
// arguments: its nodes, their engines, and the shims of their containers.
func processes(t *testing.T) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil && bytes.Contains(text, []byte(clusterDir)) {
			found = append(found, fmt.Sprintf("%s: %s", file, bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return found
}
