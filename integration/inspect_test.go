package integration

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unsteady lists the parts that differ from one machine or moment to another.
var unsteady = []struct {
	is *regexp.Regexp
	as string
}{
	{regexp.MustCompile(`(?m)^srw\S+ \S+ \S+ /var/run/docker.sock`), "ROW"}, // the engine's configuration decides its group
	{regexp.MustCompile(`pid \d+ \(.+\)`), "pid PID"},                       // of systemd, if it opened the socket for the engine
	{regexp.MustCompile(`(?m)^  clients   .*`), "  clients   CLIENTS"},      // of other tests, too
	{regexp.MustCompile(`0 of \d+ connections`), "0 of MANY connections"},
}

func wantREADME(t *testing.T, name, got string) {
	t.Helper()
	want := readme(t, name)
	for _, u := range unsteady {
		want, got = u.is.ReplaceAllString(want, u.as), u.is.ReplaceAllString(got, u.as)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("README.md and the client (-README +client):\n%s", d)
	}
}

func TestInspectDistinguishesLiveFromStaleInAnotherContainer(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startServer(t, volume)
	inspect := func(name string) {
		t.Helper()
		client := runClient(t, volume, []string{"inspect", socketPath}, tool, readOnly)
		out, errs := client.output(t)
		if code := client.exitCode(t); code != 0 || errs != "" {
			t.Errorf("exit %d, error %q", code, errs)
		}
		wantREADME(t, name, out)
	}
	inspect("inspect")
	server.signal(t, "KILL")
	server.awaitExit(t)
	inspect("inspect stale")
}

func TestInspectTheEnginesOwnSocket(t *testing.T) {
	t.Parallel()
	program := programs(t) + "/uds"
	var out []byte
	await(t, "the engine to accept the other tests' connections", func() bool {
		var err error
		if out, err = exec.CommandContext(t.Context(), program, "inspect", "/var/run/docker.sock").Output(); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(out), "backlog   0 of ")
	})
	// In a container the engine's socket usually is a mount.
	text := regexp.MustCompile(`(?m)^  why       it is itself a mount: .*\n`).ReplaceAllString(string(out), "")
	wantREADME(t, "inspect docker", text)
}
