package integration

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

const filesAddress = "files:/run/uds/uds_files"

func TestFileOfTheClientsContainerIsReadInTheServers(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := start(t, serverImage, volume, on(filesAddress), testcontainers.WithWaitStrategy(wait.ForExec([]string{"server", "healthcheck"})))
	for name, script := range map[string]string{
		"send-file": `echo hello >/dev/shm/greeting; client send-file /dev/shm/greeting`,
		"share":     `echo hello | client share -`,
	} {
		_, seen := server.output(t)
		client := runClient(t, volume, nil, on(filesAddress), shell(script))
		out, events := client.output(t)
		if client.exitCode(t) != 0 || out != readme(t, name+"-output") {
			t.Errorf("%s: exit %d, output %q", name, client.exitCode(t), out)
		}
		if d := cmp.Diff(readme(t, name), events); d != "" {
			t.Errorf("README.md and client %s (-README +client):\n%s", name, d)
		}
		var said string
		await(t, "the server to wait again", func() bool {
			_, events := server.output(t)
			said = strings.TrimPrefix(events, seen)
			return strings.Contains(said, "no data from")
		})
		const want = `connection from
received 'sum 1'
read all of it
sending 'sum 1 6 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03'
no data from
`
		if d := cmp.Diff(want, said); d != "" {
			t.Errorf("server of %s (-want +got):\n%s", name, d)
		}
	}
	// The client's file is not in the server's file system.
	if out := server.exec(t, "ls", "-A", "/dev/shm"); out != "" {
		t.Errorf("the server has %q", out)
	}
}

// With make stress the client passes 1 GiB, and the server, which may use 64
// MiB, reads it all.
func TestGiBIsHandedOverInAFewBytes(t *testing.T) {
	volume := newVolume(t)
	small := withHost(func(h *container.HostConfig) { h.Memory = 64 << 20 })
	start(t, serverImage, volume, on(address+","+filesAddress), small,
		testcontainers.WithEnv(map[string]string{"UDS_CHUNK": "65536", "UDS_LOG_LEVEL": "warn"}),
		testcontainers.WithWaitStrategy(wait.ForExec([]string{"server", "healthcheck"})))
	// Each command's output and events are in files, and its time is measured.
	client := runClient(t, volume, nil, on(filesAddress),
		testcontainers.WithEnv(map[string]string{"UDS_LOG_FORMAT": "json"}),
		withHost(func(h *container.HostConfig) {
			h.Memory = 3 << 30
			h.Tmpfs = map[string]string{"/big": "size=1100m,mode=1777"}
		}),
		testcontainers.WithWaitStrategy(wait.ForExit().WithExitTimeout(5*time.Minute)),
		shell(`
			cd /big
			head -c `+strconv.Itoa(testkit.Count(80<<20, 1<<30))+` /dev/urandom >f
			time sh -c 'sha256sum f >sha256sum.out'
			time sh -c 'client send-file f >send-file.out 2>send-file.err'
			time sh -c 'client share f >share.out 2>share.err'
			time sh -c 'client --log-level warn --connect `+address+` --chunk 65536 - <f | sha256sum >stream.out'
			for i in sha256sum send-file share stream; do cat $i.out; done
			cat send-file.err share.err`))
	out, stderr := client.output(t)
	if code := client.exitCode(t); code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, stderr)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, name := range []string{"send-file", "share"} {
		if lines[i+1] != lines[0] {
			t.Errorf("%s: %q, but sha256sum: %q", name, lines[i+1], lines[0])
		}
	}
	if stream, _, _ := strings.Cut(lines[3], " "); !strings.HasPrefix(lines[0], stream) {
		t.Errorf("the stream brought back %q of %q", stream, lines[0])
	}
	through, messages := 0, 0
	for _, line := range lines[4:] {
		var event struct{ Bytes int }
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if event.Bytes > 0 {
			through += event.Bytes
			messages++
		}
	}
	if messages != 4 || through >= 4096 {
		t.Errorf("%d messages with %d bytes went through the socket, want 4 with fewer than 4096", messages, through)
	}
	t.Logf("handed over twice in %d bytes; sha256sum alone, send-file, share, and echoed through the stream:\n%s", through, stderr)
}
