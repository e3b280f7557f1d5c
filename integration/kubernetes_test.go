package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"github.com/udsecho/udsecho/internal/testkit"
)

// kubernetes decodes deploy/kubernetes.yaml strictly: a field that the API
// does not have, or has elsewhere, is an error.
func kubernetes(t *testing.T) (set appsv1.DaemonSet, nothing networkingv1.NetworkPolicy) {
	t.Helper()
	text, err := os.ReadFile("../deploy/kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := bytes.Split(text, []byte("\n---\n"))
	if len(documents) != 2 {
		t.Fatalf("%d documents in deploy/kubernetes.yaml, want 2", len(documents))
	}
	for i, v := range []any{&set, &nothing} {
		if err := yaml.UnmarshalStrict(documents[i], v); err != nil {
			t.Fatal(err)
		}
	}
	return set, nothing
}

func TestKubernetesManifestIsValid(t *testing.T) {
	t.Parallel()
	set, nothing := kubernetes(t)
	if set.APIVersion != "apps/v1" || set.Kind != "DaemonSet" || nothing.APIVersion != "networking.k8s.io/v1" || nothing.Kind != "NetworkPolicy" {
		t.Errorf("kinds %s %s, %s %s", set.APIVersion, set.Kind, nothing.APIVersion, nothing.Kind)
	}
	for _, selector := range []*metav1.LabelSelector{set.Spec.Selector, &nothing.Spec.PodSelector} {
		if d := cmp.Diff(set.Spec.Template.Labels, selector.MatchLabels); d != "" {
			t.Errorf("the Pod's labels and a selector of it (-Pod +selector):\n%s", d)
		}
	}
	sidecar := set.Spec.Template.Spec.InitContainers[0]
	if sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the server is not a native sidecar")
	}

	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(restricted, &set.Spec.Template.ObjectMeta, &set.Spec.Template.Spec) {
		if !result.Allowed {
			t.Errorf("the restricted Pod Security Standard: %s: %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
}

// podman runs Podman with its images, containers and volumes in a folder.
type podman struct{ dir string }

func newPodman(t *testing.T) podman {
	t.Helper()
	for program, pkg := range map[string]string{"podman": "podman", "catatonit": "catatonit", "runc": "runc"} {
		testkit.Need(t, program, pkg)
	}
	if os.Geteuid() != 0 {
		t.Fatal("podman plays the Pod with the user and group ids of the images: run the test as root")
	}
	dir, err := os.MkdirTemp("", "p") // short: conmon has a socket in it
	if err != nil {
		t.Fatal(err)
	}
	// Limits that even a machine with lower limits accepts; and no systemd.
	config := "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n" +
		"[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "containers.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	p := podman{dir}
	t.Cleanup(func() {
		for _, args := range [][]string{{"pod", "rm", "--force", "--all"}, {"volume", "rm", "--all", "--force"}, {"image", "rm", "--all", "--force"}} {
			if out, err := p.command(args...).CombinedOutput(); err != nil {
				t.Errorf("podman %v: %v\n%s", args, err, out)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p podman) command(args ...string) *exec.Cmd {
	cmd := exec.Command("podman", append([]string{
		"--root", p.dir + "/root", "--runroot", p.dir + "/run", "--tmpdir", p.dir + "/tmp", "--storage-driver", "vfs",
	}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+p.dir+"/containers.conf")
	return cmd
}

func (p podman) must(t *testing.T, args ...string) {
	t.Helper()
	if out, err := p.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("podman %v: %v\n%s", args, err, out)
	}
}

// pod returns the Pod of the DaemonSet with this test's images, as its
// controller would make it on the node with this name.
func pod(set appsv1.DaemonSet, node string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "udsecho", Labels: set.Spec.Template.Labels},
		Spec:       *set.Spec.Template.Spec.DeepCopy(),
	}
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			c.Image = "localhost/udsecho-test-" + c.Name + ":latest"
			for j, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName" {
					c.Env[j] = corev1.EnvVar{Name: e.Name, Value: node}
				}
			}
		}
	}
	return p
}

func (p podman) play(t *testing.T, pod *corev1.Pod) (string, error) {
	t.Helper()
	text, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(p.dir, "pod.yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := p.command("play", "kube", "--network", "none", file).CombinedOutput()
	return string(out), err
}

func TestPodmanPlaysThePod(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	set, _ := kubernetes(t)
	images := exec.CommandContext(t.Context(), "docker", "save", serverImage, clientImage)
	load := p.command("load", "--quiet")
	var err error
	if load.Stdin, err = images.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := images.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("podman load: %v\n%s", err, out)
	}
	if err := images.Wait(); err != nil {
		t.Fatalf("docker save: %v", err)
	}

	made := pod(set, "node-7")
	if out, err := p.play(t, made); err != nil {
		// Podman before 5 does not know native sidecars. There the server is a
		// container beside the client, which waits for it.
		if !strings.Contains(out, "cannot create an init container that has either of lifecycle, livenessProbe") {
			t.Fatalf("podman play kube: %v\n%s", err, out)
		}
		t.Logf("podman plays no native sidecar: %s", strings.TrimSpace(out))
		p.must(t, "pod", "rm", "--force", "--all")
		sidecar := made.Spec.InitContainers[0]
		sidecar.RestartPolicy = nil
		made.Spec.InitContainers = nil
		made.Spec.Containers = append([]corev1.Container{sidecar}, made.Spec.Containers...)
		if out, err := p.play(t, made); err != nil {
			t.Fatalf("podman play kube: %v\n%s", err, out)
		}
	}

	follow := p.command("logs", "--follow", "udsecho-client")
	var echoes strings.Builder
	lines, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = follow.Process.Kill() })
	buf := make([]byte, 1024)
	for !strings.Contains(echoes.String(), "echoes 3 failures 0\n") {
		n, err := lines.Read(buf)
		echoes.Write(buf[:n])
		if err != nil {
			t.Errorf("the client in the Pod: %v\n%s", err, echoes.String())
			break
		}
	}
	late.Stop()
	_ = follow.Process.Kill()
	_ = follow.Wait()

	server, err := p.command("logs", "udsecho-server").CombinedOutput()
	if err != nil || !bytes.Contains(server, []byte(`"identity":"node-7"`)) || !bytes.Contains(server, []byte(`"message":"received 'node-7'"`)) {
		t.Errorf("the server in the Pod: %v\n%s", err, server)
	}
	// The probe, which Podman calls a health check.
	p.must(t, "healthcheck", "run", "udsecho-server")
	p.must(t, "kill", "--signal", "STOP", "udsecho-server")
	if out, err := p.command("healthcheck", "run", "udsecho-server").CombinedOutput(); err == nil {
		t.Errorf("the probe passes although the server is stopped: %s", out)
	}
	p.must(t, "kill", "--signal", "CONT", "udsecho-server")
	p.must(t, "healthcheck", "run", "udsecho-server")
}
