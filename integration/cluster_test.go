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

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

const labDir = "/run/udsecho-lab"

func TestLabWithoutRootNamesTheFormThatWorks(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lab") // which any user may read
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if out, err := exec.CommandContext(t.Context(), "cp", "-r", "../deploy", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ command, words string }{
		{"deploy/lab/swarm.sh", "docker stack deploy --resolve-image never -c deploy/swarm.yaml udsecho"},
		{"deploy/lab/kubernetes.sh demo", "make kubernetes-existing"},
		{"deploy/lab/kubernetes.sh scale 10", "make kubernetes-existing"},
	} {
		cmd := exec.CommandContext(t.Context(), "bash", strings.Fields(c.command)...)
		cmd.Dir = dir
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "needs root") || !strings.Contains(string(out), c.words) {
			t.Errorf("%s: exit status %d\n%s", c.command, cmd.ProcessState.ExitCode(), out)
		}
	}
}

// A lab that is killed in the middle, and then one that runs to its end and has
// to cope with what the first could not remove.
func TestCluster(t *testing.T) {
	testkit.StressOnly(t)
	testkit.NeedRoot(t, "to make namespaces")
	before := inventory(t)

	killed := exec.CommandContext(t.Context(), "../deploy/lab/swarm.sh")
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
	second := exec.CommandContext(t.Context(), "../deploy/lab/swarm.sh")
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "in use: another lab holds "+labDir) {
		t.Errorf("a second cluster: %v\n%s", err, out)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // until the last process that could write has gone
	}
	_ = killed.Wait()
	await(t, "the lab's processes to end", func() bool { return len(processes(t)) == 0 })
	left := inventory(t)
	if d := cmp.Diff(before.untouched(), left.untouched()); d != "" {
		t.Errorf("killed, the cluster leaves (-before +after):\n%s", d)
	}

	out := makeTarget(t, "..", "cluster-demo")
	if d := cmp.Diff(before, inventory(t), cmp.AllowUnexported(things{})); d != "" {
		t.Errorf("make cluster-demo leaves (-before +after):\n%s", d)
	}
	if d := cmp.Diff(shape(readme(t, "cluster")), shape(out)); d != "" {
		t.Errorf("README.md and make cluster-demo (-README +make):\n%s", d)
	}
	wantNodes(t, out, "node-3") // whose engine was killed
	for _, line := range []string{`(?m)^rolling update: .* meanwhile, 0 failed$`, `(?m)^engine of node-3 killed .* on the other nodes \d+ echoes, 0 failed$`} {
		if !regexp.MustCompile(line).MatchString(out) {
			t.Errorf("no line like %s in:\n%s", line, out)
		}
	}
}

// wantNodes fails the test unless each of three nodes was served by itself, and
// without a failure but for the node named.
func wantNodes(t *testing.T, out, mayFail string) {
	t.Helper()
	rows := regexp.MustCompile(`(?m)^(node-\d) +(node-\d) +\S+ +(\d+) +(\d+)$`).FindAllStringSubmatch(out, -1)
	if len(rows) != 3 {
		t.Fatalf("%d nodes in the table, want 3:\n%s", len(rows), out)
	}
	for _, row := range rows {
		if row[1] != row[2] || row[3] == "0" || row[1] != mayFail && row[4] != "0" {
			t.Errorf("a node was not served by itself, or not always: %s", row[0])
		}
	}
}

// The manifest as it is, on a real Kubernetes, whose programs take minutes to
// build. `make kubernetes-test` runs it.
func TestF50KubernetesHealsThePair(t *testing.T) {
	if os.Getenv("KUBERNETES") == "" {
		t.Skip("minutes long: make kubernetes-test")
	}
	before := inventory(t)
	out := makeTarget(t, "..", "kubernetes-demo")
	if d := cmp.Diff(before, inventory(t), cmp.AllowUnexported(things{})); d != "" {
		t.Errorf("make kubernetes-demo leaves (-before +after):\n%s", d)
	}
	if d := cmp.Diff(shape(readme(t, "kubernetes")), shape(out)); d != "" {
		t.Errorf("README.md and make kubernetes-demo (-README +make):\n%s", d)
	}
	wantNodes(t, out, "node-2") // whose server was stopped
	result := func(pattern string) []string {
		t.Helper()
		found := regexp.MustCompile("(?m)^" + pattern + "$").FindStringSubmatch(out)
		if found == nil {
			t.Fatalf("no line like %s in:\n%s", pattern, out)
		}
		return found[1:]
	}
	kill := result(`the server of node-1 is killed, restarted after \d+ s: (\d+) echoes meanwhile, 0 failed`)
	stop := result(`the server of node-2 is stopped, restarted after (\d+) s: \d+ echoes meanwhile, (\d+) failed`)
	node := result(`kubelet and containerd of node-3 are killed for \d+ s, on the other nodes: (\d+) echoes meanwhile, 0 failed`)
	back := result(`node-3 has made 5 echoes more \d+ s after they came back, there since the kill: (\d+) echoes meanwhile, (\d+) failed`)
	update := result(`rolling update of 3 Pods in \d+ s: (\d+) echoes meanwhile, 0 failed`)
	result(`the Pod of node-1 is deleted, first the client ended, then the server, both with exit status 0: \d+ echoes meanwhile, 0 failed`)

	// The command for a cluster that one has, with the lab's as that cluster.
	existing := exec.CommandContext(t.Context(), "../deploy/lab/kubernetes.sh", "shell", "make", "kubernetes-existing")
	if out, err := existing.CombinedOutput(); err != nil || !strings.Contains(string(out), "rolling update of 3 Pods") {
		t.Errorf("make kubernetes-existing: %v\n%s", err, out)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F50", Count: 5,
		Done: "on three nodes of Kubernetes 1.34, with a client that echoes each second on each: a server's process killed; one stopped; " +
			"a node's kubelet and containerd killed, missed by the control plane, and started again; a rolling update; a Pod deleted",
		Outcome: fmt.Sprintf("killed: %s echoes meanwhile, 0 failed; stopped: the liveness probe had it restarted after %s s, %s failed, at their `--timeout`; "+
			"kubelet and containerd killed: %s on the other nodes, 0 failed, and %s on the node itself, %s failed; update: %s, 0 failed; deleted: the client ended before the server, both with exit status 0",
			kill[0], stop[0], stop[1], node[0], back[0], back[1], update[0]),
	})
}

// shape is the output without what differs from run to run.
func shape(s string) string {
	s = regexp.MustCompile(`udsecho-[a-z0-9]{5}\b|\b[0-9a-f]{12}\b|\b\d+\b`).ReplaceAllString(s, "N")
	return regexp.MustCompile(` +`).ReplaceAllString(s, " ")
}

// things are what a lab could leave behind.
type things struct {
	processes, mounts, links, files []string
	groups                          []string // empty ones, and a folder, which the next run removes
}

func (l things) untouched() [][]string { return [][]string{l.processes, l.mounts, l.links, l.files} }

func inventory(t *testing.T) (left things) {
	t.Helper()
	left.processes = processes(t)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if regexp.MustCompile(`^(lab|node) |/etc/resolv.conf|/kubelet| /run/netns/`).MatchString(line) {
			left.mounts = append(left.mounts, line)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if link.Name == "nodes" || link.Name == "pods" || strings.HasPrefix(link.Name, "node-") {
			left.links = append(left.links, link.Name)
		}
	}
	for _, pattern := range []string{"/dev/shm/*", "/var/log/*", "/var/lib/*", "/run/netns/*", labDir + "/*"} {
		files, _ := filepath.Glob(pattern)
		left.files = append(left.files, files...)
	}
	for _, pattern := range []string{labDir, "/sys/fs/cgroup/udsecho-lab", "/sys/fs/cgroup/*/udsecho-lab"} {
		groups, _ := filepath.Glob(pattern)
		left.groups = append(left.groups, groups...)
	}
	return left
}

// processes are those that have the lab's variable in their environment: its
// nodes, their engines, and the shims of their containers.
func processes(t *testing.T) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil && bytes.Contains(text, []byte("UDSECHO_LAB=1\x00")) {
			found = append(found, fmt.Sprintf("%s: %s", file, bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return found
}
