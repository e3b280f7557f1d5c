package integration

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

// messageTypes are the types that keep boundaries, with the output of the
// client and the server for one message and its echo.
var messageTypes = map[string]string{
	"datagram": `starting up on /run/uds/s
waiting for a message
received 'This is the message.  It will be repeated.'
sending data back to the client
`,
	"seqpacket": `starting up on /run/uds/s
waiting for a connection
connection from
received 'This is the message.  It will be repeated.'
sending data back to the client
no data from
waiting for a connection
`,
}

const messageClient = `connecting to /run/uds/s
sending 'This is the message.  It will be repeated.'
received 'This is the message.  It will be repeated.'
closing socket
`

// on makes a container listen or connect to an address.
func on(address string) testcontainers.CustomizeRequestOption {
	return testcontainers.WithEnv(map[string]string{"UDS_LISTEN": address, "UDS_CONNECT": address})
}

// scratch gives the container a /tmp to write to.
var scratch = withHost(func(h *container.HostConfig) {
	h.Tmpfs = map[string]string{"/tmp": "mode=1777"}
})

// shell runs a script instead of the client alone.
func shell(script string) testcontainers.CustomizeRequestOption {
	return testcontainers.WithEntrypoint("sh", "-euc", script)
}

func TestMessageCrossesContainersWhole(t *testing.T) {
	for kind, wantServer := range messageTypes {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			volume := newVolume(t)
			address := on(kind + ":/run/uds/s")
			server := start(t, serverImage, volume, address, testcontainers.WithWaitStrategy(wait.ForLog("waiting for a")))
			client := runClient(t, volume, nil, address)
			out, events := client.output(t)
			if code := client.exitCode(t); code != 0 || out != message || events != messageClient {
				t.Errorf("client: exit %d, output %q, events (-want +got):\n%s", code, out, cmp.Diff(messageClient, events))
			}
			if d := cmp.Diff(readme(t, kind), strings.ReplaceAll(messageClient, "/run/uds/s", "/run/uds/uds_"+kind)); d != "" {
				t.Errorf("README.md (-README +client):\n%s", d)
			}
			await(t, "the server's transcript", func() bool {
				_, events := server.output(t)
				return events == wantServer
			})
			if left := server.exec(t, "ls", "-A", "/run/uds"); left != ".s.lock\ns\n" {
				t.Errorf("left in the volume:\n%s", left)
			}
		})
	}
}

func TestLargestMessageAndEmptyOne(t *testing.T) {
	for kind := range messageTypes {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			volume := newVolume(t)
			address := on(kind + ":/run/uds/s")
			quiet := testcontainers.WithEnv(map[string]string{"UDS_LOG_LEVEL": "warn"})
			start(t, serverImage, volume, address, quiet, testcontainers.WithWaitStrategy(wait.ForExec([]string{"server", "healthcheck"})))
			client := runClient(t, volume, nil, address, quiet, scratch, shell(`
				head -c 200000 /dev/urandom >/tmp/in
				client - </tmp/in | cmp - /tmp/in
				client '' && client after
				head -c 212960 /dev/urandom >/tmp/in
				client - </tmp/in | cmp - /tmp/in
				head -c 212961 /dev/urandom >/tmp/in
				! client - </tmp/in
			`))
			out, events := client.output(t)
			if client.exitCode(t) != 0 || out != "after" {
				t.Errorf("exit %d, output %q", client.exitCode(t), out)
			}
			want := "212961 bytes, the socket sends at most 212960; raise SO_SNDBUF"
			if !strings.Contains(events, want) {
				t.Errorf("no error with %q:\n%s", want, events)
			}
		})
	}
}

// With make stress: a million numbered datagrams, from this many clients, each
// with this many messages in flight, while the server is paused this many
// times.
const (
	senders       = 4
	underWay      = 256
	pauseDuration = 200 * time.Millisecond
)

var (
	perSender = testkit.Count(10_000, 250_000)
	pauses    = testkit.Count(2, 5)
)

// flood makes the senders send their numbers to server and pauses it
// meanwhile. It returns how many messages each received, which they print, and
// whether all of them were the same in the same order.
func flood(t *testing.T, server box, volume string, opts ...testcontainers.ContainerCustomizer) (back int, same bool) {
	t.Helper()
	script := fmt.Sprintf(`
		seq -w 1 250000 | head -n %d >/tmp/in
		client --chunk 7 --window %d --timeout %v - </tmp/in >/tmp/out || true
		cmp /tmp/in /tmp/out && echo same
		wc -l </tmp/out`, perSender, underWay, testkit.Patience)
	opts = append([]testcontainers.ContainerCustomizer{shell(script), scratch}, opts...)
	clients := make([]box, senders)
	for i := range clients {
		clients[i] = start(t, clientImage, volume, opts...)
	}
	for range pauses {
		if err := engine.ContainerPause(t.Context(), server.GetContainerID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pauseDuration) // the length of the fault; nothing is waited for
		if err := engine.ContainerUnpause(t.Context(), server.GetContainerID()); err != nil {
			t.Fatal(err)
		}
	}
	same = true
	for _, c := range clients {
		if code := c.awaitExit(t); code != 0 {
			t.Errorf("client: exit %d", code)
		}
		out, events := c.output(t)
		lines := strings.Fields(out)
		n, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			t.Fatalf("client: %q\n%s", out, events)
		}
		back += n
		same = same && lines[0] == "same"
	}
	return back, same
}

func TestMillionDatagramsThroughAPausedServer(t *testing.T) {
	volume := newVolume(t)
	quiet := testcontainers.WithEnv(map[string]string{"UDS_LOG_LEVEL": "warn"})

	address := on("datagram:/run/uds/s")
	server := start(t, serverImage, volume, address, quiet, testcontainers.WithWaitStrategy(wait.ForExec([]string{"server", "healthcheck"})))
	back, same := flood(t, server, volume, address, quiet)
	if back != senders*perSender || !same {
		t.Errorf("Unix datagrams: %d of %d came back, in order: %v", back, senders*perSender, same)
	}
	if _, events := server.output(t); events != "" {
		t.Errorf("the server's warnings:\n%s", events)
	}
	t.Logf("Unix datagrams: %d sent, %d lost", senders*perSender, senders*perSender-back)
}

func TestOneClientThatNeverReadsHarmsNoOtherClient(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	quiet := testcontainers.WithEnv(map[string]string{"UDS_LOG_LEVEL": "warn", "UDS_TIMEOUT": testkit.Patience.String()})
	address := on("datagram:/run/uds/s")
	start(t, serverImage, volume, address, quiet, testcontainers.WithWaitStrategy(wait.ForExec([]string{"server", "healthcheck"})))

	// The client is frozen with many messages in flight, and reads no replies
	// any more.
	stuck := start(t, clientImage, volume, address, shell(`yes | client --chunk 1024 --window 1000 - >/dev/null`),
		testcontainers.WithWaitStrategy(wait.ForLog("sending standard input")))
	if err := engine.ContainerPause(t.Context(), stuck.GetContainerID()); err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	for range 5 {
		clients.Go(func() {
			c := runClient(t, volume, nil, address, quiet, scratch, shell(`
				for i in 0 1 2 3 4 5 6 7 8 9; do client "hello $i" >/tmp/$i & done
				wait
				for i in 0 1 2 3 4 5 6 7 8 9; do [ "$(cat /tmp/$i)" = "hello $i" ]; done`))
			if code := c.exitCode(t); code != 0 {
				_, events := c.output(t)
				t.Errorf("10 of 50 others: exit %d\n%s", code, events)
			}
		})
	}
	clients.Wait()
}
