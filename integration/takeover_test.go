package integration

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

const allAddresses = "stream:/run/uds/uds_socket,datagram:/run/uds/uds_datagram,seqpacket:/run/uds/uds_seqpacket"

// load is the script of a client container: five clients of each type at a
// time, one after the other, and long transfers, until there is a file
// /tmp/stop. Each client must get its echo at the first try.
const load = `
	one() {
		n=0
		until [ -e /tmp/stop ]; do
			n=$((n + 1))
			[ "$(client --log-level error --timeout 30s --bind "$3" --connect "$1" "$2 $n")" = "$2 $n" ] || { echo "$1: $2 $n failed"; exit 1; }
		done
		echo "$1: $n echoes"
	}
	long() {
		until [ -e /tmp/stop ]; do
			client --log-level error --chunk 65536 - </tmp/in | cmp - /tmp/in || { echo "a long transfer failed"; exit 1; }
		done
		echo "long transfers: all the same"
	}
	head -c "$SIZE" /dev/urandom >/tmp/in
	for i in 1 2 3 4 5; do
		one stream:/run/uds/uds_socket "stream $i" none &
		one seqpacket:/run/uds/uds_seqpacket "seqpacket $i" none &
		one datagram:/run/uds/uds_datagram "datagram $i" /run/clients/ &
	done
	long &
	echo ready
	wait`

// startLoad starts clients that are busy until stop, which returns their
// reports. A long transfer has size bytes: it must end within the server's
// drain timeout.
func startLoad(t *testing.T, volume string, size int, opts ...testcontainers.ContainerCustomizer) (stop func() string) {
	t.Helper()
	opts = append([]testcontainers.ContainerCustomizer{shell(load), scratch, testcontainers.WithEnv(map[string]string{"SIZE": strconv.Itoa(size)}), testcontainers.WithWaitStrategy(wait.ForLog("ready"))}, opts...)
	c := start(t, clientImage, volume, opts...)
	return func() string {
		t.Helper()
		c.exec(t, "touch", "/tmp/stop")
		code := c.awaitExit(t)
		out, events := c.output(t)
		if code != 0 || events != "" || strings.Contains(out, "failed") || strings.Count(out, "echoes") != 15 {
			t.Errorf("clients: exit %d\n%s%s", code, out, events)
		}
		return out
	}
}

func TestTakeoverBetweenContainersUnderLoad(t *testing.T) {
	t.Parallel()
	volume, clients := newVolume(t), newVolume(t)
	withClients := withHost(func(h *container.HostConfig) { h.Binds = append(h.Binds, clients+":/run/clients") })
	env := testcontainers.WithEnv(map[string]string{"UDS_LISTEN": allAddresses, "UDS_TAKEOVER": "true", "UDS_CHUNK": "65536", "UDS_DRAIN_TIMEOUT": "60s", "UDS_LOG_LEVEL": "info"})
	server := startServer(t, volume, env, withClients)
	inodes := func(b box) string {
		return b.exec(t, "stat", "-c", "%n %i", "/run/uds/uds_socket", "/run/uds/.uds_socket.lock", "/run/uds/.uds_datagram.takeover")
	}
	before := inodes(server)
	stop := startLoad(t, volume, 8_000_000, withClients)
	for range 3 {
		next := startServer(t, volume, env, withClients, testcontainers.WithWaitStrategy(wait.ForLog("took over ").WithOccurrence(3)))
		if code := server.awaitExit(t); code != 0 {
			_, events := server.output(t)
			t.Errorf("the old server: exit %d\n%s", code, events)
		}
		server = next
	}
	t.Log(stop())
	if d := cmp.Diff(before, inodes(server)); d != "" {
		t.Errorf("inodes (-before +after):\n%s", d)
	}
	server.signal(t, "SIGTERM")
	if code := server.awaitExit(t); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// A client in another container, of the group that may connect, of a user that
// may not.
func TestStrangerInAnotherContainerIsRejected(t *testing.T) {
	t.Parallel()
	for _, a := range strings.Split(allAddresses, ",") {
		t.Run(a, func(t *testing.T) {
			t.Parallel()
			volume, clients := newVolume(t), newVolume(t)
			withClients := withHost(func(h *container.HostConfig) { h.Binds = append(h.Binds, clients+":/run/clients") })
			env := testcontainers.WithEnv(map[string]string{"UDS_LISTEN": a, "UDS_ALLOW_UID": "10002", "UDS_LOG_FORMAT": "console"})
			server := start(t, serverImage, volume, env, withClients, testcontainers.WithWaitStrategy(wait.ForLog("waiting for a ")))
			to := testcontainers.WithEnv(map[string]string{"UDS_CONNECT": a, "UDS_BIND": "/run/clients/"})

			stranger := runClient(t, volume, nil, to, withClients, withUser("10003:10000"))
			out, events := stranger.output(t)
			if code := stranger.exitCode(t); code != 1 || out != "" || !strings.Contains(events, "uid 10003 gid 10000\n") {
				t.Errorf("the stranger: exit %d, output %q\n%s", code, out, events)
			}
			await(t, "the refusal in the log", func() bool {
				_, events := server.output(t)
				return strings.Contains(events, "rejected a client: user 10003, group 10000 is not allowed cause=user gid=10000 peer=/run/clients/client.") &&
					strings.Contains(events, " pid=unknown refused=1 uid=10003\n")
			})
			_, events = server.output(t)
			got := regexp.MustCompile(`WRN rejected .*\n`).FindString(events)
			peer := regexp.MustCompile(`client\.\S+`) // it varies
			if d := cmp.Diff(peer.ReplaceAllString(readme(t, "refused"), ""), peer.ReplaceAllString(got, "")); d != "" {
				t.Errorf("README.md and server (-README +server):\n%s", d)
			}
			friend := runClient(t, volume, nil, to, withClients)
			if out, events := friend.output(t); friend.exitCode(t) != 0 || out != message {
				t.Errorf("the friend: exit %d, output %q\n%s", friend.exitCode(t), out, events)
			}
			if got := server.exec(t, "server", "healthcheck"); got != "" {
				t.Errorf("health check: %q", got)
			}
		})
	}
}

// The README's commands, while clients are busy.
func TestComposeServiceIsReplacedUnderLoad(t *testing.T) {
	forEachCompose(t, func(t *testing.T, c compose) {
		c.must(t, "up", "-d", "server")
		old := c.ids(t, "server")[0]
		await(t, "a healthy server", func() bool {
			info, err := engine.ContainerInspect(t.Context(), old)
			return err == nil && info.State.Health.Status == "healthy"
		})
		clients := c.project + "_clients"
		stop := startLoad(t, c.project+"_sockets", 100_000, withHost(func(h *container.HostConfig) { h.Binds = append(h.Binds, clients+":/run/clients") }))
		for range 2 {
			replace(t, c, old)
			ids := c.ids(t, "server")
			if len(ids) != 1 || ids[0] == old {
				t.Fatalf("servers: %v, old was %s", ids, old)
			}
			old = ids[0]
		}
		t.Log(stop())
		// The next usual command does not change the new server.
		c.must(t, "up", "-d", "server")
		if ids := c.ids(t, "server"); len(ids) != 1 || ids[0] != old {
			t.Errorf("servers: %v, was %s", ids, old)
		}
	})
}

// replace runs the commands of the README.
func replace(t *testing.T, c compose, old string) {
	t.Helper()
	commands := strings.TrimSpace(readme(t, "replace"))
	script := fmt.Sprintf("docker_compose() { %s -p %s \"$@\"; }\n", strings.Join(c.command, " "), c.project) +
		strings.ReplaceAll(commands, "docker compose ", "docker_compose ")
	cmd := exec.CommandContext(t.Context(), "sh", "-euxc", script)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), old[:12]) {
		t.Fatalf("replace %s: %v\n%s", old, err, out)
	}
}
