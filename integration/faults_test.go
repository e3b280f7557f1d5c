package integration

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/udsecho/udsecho/internal/testkit"
)

// A transfer is a client that sends random bytes until it is told to stop, and
// then compares the bytes received.
type transfer struct{ box }

// The checksums need no memory, however long the script runs. The pauses leave
// the processor to other processes.
const transferScript = `
	set -o pipefail
	touch /tmp/parts
	mkfifo /tmp/copy
	md5sum </tmp/copy >/tmp/sent &
	until [ -e /tmp/stop ]; do
		head -c 1000000 /dev/urandom
		echo >>/tmp/parts
		sleep 0.05
	done | tee /tmp/copy | client --chunk 65536 "$@" - | md5sum >/tmp/back
	wait
	cmp /tmp/sent /tmp/back`

// startTransfer returns when bytes are in flight.
func startTransfer(t *testing.T, volume string, args []string, opts ...testcontainers.ContainerCustomizer) transfer {
	t.Helper()
	tr := transfer{start(t, clientImage, volume, append([]testcontainers.ContainerCustomizer{
		shell(transferScript), testcontainers.WithCmd(append([]string{"client"}, args...)...), scratch, quiet,
	}, opts...)...)}
	t.Cleanup(func() {
		if t.Failed() {
			out, events := tr.output(t)
			t.Logf("the transfer wrote:\n%s%s", out, events)
		}
	})
	tr.goesOn(t)
	return tr
}

// quiet is for containers that send much.
var quiet = testcontainers.WithEnv(map[string]string{"UDS_LOG_LEVEL": "warn", "UDS_CHUNK": "65536"})

// startQuietServer starts a server for a transfer.
func startQuietServer(t *testing.T, volume string, opts ...testcontainers.ContainerCustomizer) box {
	t.Helper()
	ready := testcontainers.WithWaitStrategy(wait.ForExec([]string{"server", "healthcheck"}))
	return start(t, serverImage, volume, append([]testcontainers.ContainerCustomizer{quiet, ready}, opts...)...)
}

// goesOn waits until more bytes than all buffers hold have been sent from now
// on, so that some of them have been echoed.
func (tr transfer) goesOn(t *testing.T) {
	t.Helper()
	parts := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(tr.exec(t, "sh", "-c", "cat /tmp/parts 2>&- | wc -l")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := parts()
	await(t, "the transfer to continue", func() bool { return parts() >= before+3 })
}

// end ends the transfer, and returns the client's events.
func (tr transfer) end(t *testing.T) (events string) {
	t.Helper()
	tr.exec(t, "touch", "/tmp/stop")
	code := tr.awaitExit(t)
	out, events := tr.output(t)
	if code != 0 || out != "" {
		t.Errorf("the echo differs from the bytes sent: exit %d\n%s%s", code, out, events)
	}
	return events
}

func TestTransferContinuesThroughKillsByTheEngine(t *testing.T) {
	t.Parallel()
	kills := testkit.Count(2, 5)
	volume := newVolume(t)
	server := startQuietServer(t, volume)
	tr := startTransfer(t, volume, []string{"--retry", "1m"})
	for range kills {
		server.signal(t, "KILL")
		if code := server.awaitExit(t); code != 137 {
			t.Errorf("exit %d, want 137", code)
		}
		if err := engine.ContainerStart(t.Context(), server.GetContainerID(), container.StartOptions{}); err != nil {
			t.Fatal(err)
		}
		tr.goesOn(t)
	}
	if events := tr.end(t); strings.Count(events, "connecting again") < kills {
		t.Errorf("%d kills, and the client says:\n%s", kills, events)
	}
}

func TestStopByTheEngineDrains(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startQuietServer(t, volume, testcontainers.WithEnv(map[string]string{"UDS_DRAIN_TIMEOUT": "1m"}))
	tr := startTransfer(t, volume, nil)
	stopped := make(chan error)
	go func() {
		patience := 60
		stopped <- engine.ContainerStop(t.Context(), server.GetContainerID(), container.StopOptions{Timeout: &patience})
	}()
	await(t, "the socket to be gone", func() bool { return tr.exec(t, "ls", "-A", "/run/uds") == "" })
	tr.goesOn(t)
	if events := tr.end(t); events != "" {
		t.Errorf("the client wrote:\n%s", events)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if code := server.exitCode(t); code != 0 {
		_, events := server.output(t)
		t.Errorf("the server: exit %d, want 0\n%s", code, events)
	}
}

func TestTransferDoesNotNoticeNetworksAndVolumes(t *testing.T) {
	t.Parallel()
	bridge, err := engine.NetworkCreate(t.Context(), project()+"-faults", network.CreateOptions{Driver: "bridge", Labels: labels()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the containers
		if err := engine.NetworkRemove(context.Background(), bridge.ID); err != nil {
			t.Error(err)
		}
	})
	volume := newVolume(t)
	server := startQuietServer(t, volume)
	tr := startTransfer(t, volume, nil)
	move := func(b box, from, to string) {
		t.Helper()
		if err := engine.NetworkDisconnect(t.Context(), from, b.GetContainerID(), false); err != nil {
			t.Fatal(err)
		}
		if err := engine.NetworkConnect(t.Context(), to, b.GetContainerID(), nil); err != nil {
			t.Fatal(err)
		}
		tr.goesOn(t)
	}
	for _, b := range []box{server, tr.box} {
		move(b, "none", bridge.ID)
		move(b, bridge.ID, "none")
	}
	if err := engine.VolumeRemove(t.Context(), volume, true); err == nil {
		t.Error("the engine removes a volume in use")
	}
	if out, events := runClient(t, volume, nil).output(t); out != message {
		t.Errorf("another container that comes and goes: got %q\n%s", out, events)
	}
	tr.goesOn(t)
	if events := tr.end(t); events != "" {
		t.Errorf("the client wrote:\n%s", events)
	}
}

// F22 in containers; the tests in server/ stop the process alone.
func TestPauseByTheEngineIsWaitedForOrReported(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	server := startQuietServer(t, volume)
	tr := startTransfer(t, volume, nil)
	if err := engine.ContainerPause(t.Context(), server.GetContainerID()); err != nil {
		t.Fatal(err)
	}
	// Its end shows that 5 s have passed.
	impatient := runClient(t, volume, []string{"--timeout", "5s"})
	out, events := impatient.output(t)
	want := "client: no answer for 5s: received 0 of 42 bytes; is the server paused or overloaded?\n"
	if code := impatient.exitCode(t); code != 1 || out != "" || !strings.HasSuffix(events, want) {
		t.Errorf("exit %d, output %q, want 1, none and that the server may be paused:\n%s", code, out, events)
	}
	if err := engine.ContainerUnpause(t.Context(), server.GetContainerID()); err != nil {
		t.Fatal(err)
	}
	tr.goesOn(t)
	if events := tr.end(t); events != "" {
		t.Errorf("the client wrote:\n%s", events)
	}
}

const (
	connecting   = "stream:/run/uds/s,seqpacket:/run/uds/q"
	everyType    = connecting + ",datagram:/run/uds/d"
	adminAddress = "stream:/run/uds/admin"
)

// status returns what the server's admin socket, which only the server's own
// user can use, reports.
func status(t *testing.T, volume string) (s struct {
	Accepted, Bytes uint64
	Refused         map[string]uint64
}) {
	t.Helper()
	out, events := runClient(t, volume, []string{"send", "--log-level", "warn", "--connect", adminAddress, "GET /status HTTP/1.0\r\n\r\n"}, tool, withUser("10001:10000")).output(t)
	_, body, _ := strings.Cut(out, "\r\n\r\n")
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatalf("%v in %q\n%s", err, out, events)
	}
	return s
}

// mustFail is a function for scripts: a command that must fail with status 1
// and without output.
const mustFail = `
	fail() {
		code=0
		"$@" >/tmp/out || code=$?
		[ $code = 1 ] && [ ! -s /tmp/out ] || { echo "exit status $code: $*"; cat /tmp/out; exit 1; }
	}
`

// F9 in containers; the rows F9 and F10 come from the tests in server/.
func TestClientThatIsNotAllowedIsClosedBeforeAByteIsRead(t *testing.T) {
	t.Parallel()
	const tries = 20
	volume := newVolume(t)
	server := startServer(t, volume, testcontainers.WithEnv(map[string]string{
		"UDS_LISTEN": connecting, "UDS_ALLOW_UID": "10004", "UDS_ADMIN": adminAddress,
	}))
	stranger := runClient(t, volume, nil, scratch, withUser("10003:10000"), shell(mustFail+`
		head -c 1000000 /dev/zero >/tmp/in
		for i in `+count(tries/2)+`; do
			for a in `+strings.ReplaceAll(connecting, ",", " ")+`; do fail client --connect $a --chunk 1000 - </tmp/in; done
		done`))
	if out, events := stranger.output(t); stranger.exitCode(t) != 0 {
		t.Errorf("the stranger: %s\n%s", out, events)
	}
	s := status(t, volume)
	if s.Accepted != 0 || s.Bytes != 0 || s.Refused["user"] != tries {
		t.Errorf("%d tries: %+v", tries, s)
	}
	if _, events := server.output(t); strings.Contains(events, "connection from") || strings.Contains(events, "received") {
		t.Errorf("the stranger was served:\n%s", events)
	}
	friend := runClient(t, volume, []string{"--connect", "stream:/run/uds/s"}, withUser("10004:10000"))
	if out, events := friend.output(t); out != message {
		t.Errorf("the friend: got %q\n%s", out, events)
	}
	if s := status(t, volume); s.Accepted != 1 || s.Bytes != uint64(len(message)) || s.Refused["user"] != tries {
		t.Errorf("after the friend: %+v", s)
	}
}

// F10 in containers.
func TestNameThatLiesIsOnlyAName(t *testing.T) {
	t.Parallel()
	volume, clients := newVolume(t), newVolume(t)
	withClients := withHost(func(h *container.HostConfig) { h.Binds = append(h.Binds, clients+":/run/clients") })
	server := start(t, serverImage, volume, withClients, testcontainers.WithWaitStrategy(wait.ForLog("waiting for a")),
		testcontainers.WithEnv(map[string]string{
			"UDS_LISTEN": everyType, "UDS_ALLOW_UID": "0,10004", "UDS_ADMIN": adminAddress, "UDS_LOG_FORMAT": "json",
		}))
	liar := runClient(t, volume, nil, withClients, scratch, shell(mustFail+`
		for a in `+strings.ReplaceAll(everyType, ",", " ")+`; do
			for name in 'x;uid=0' 'x uid=10004' 'x","uid":0,"y":"' 'root' '0:0'; do fail client --connect $a --bind "/run/clients/$name"; done
		done
		for a in `+strings.ReplaceAll(connecting, ",", " ")+`; do
			for name in '@x;uid=0' '@udsecho.healthcheck.x'; do fail client --connect $a --bind "$name"; done
		done`))
	const tries = 3*5 + 2*2
	if out, events := liar.output(t); liar.exitCode(t) != 0 {
		t.Errorf("the liar: %s\n%s", out, events)
	}
	if s := status(t, volume); s.Accepted != 0 || s.Refused["user"] != tries {
		t.Errorf("%d tries: %+v", tries, s)
	}
	friend := runClient(t, volume, []string{"--connect", "stream:/run/uds/s", "--bind", "/run/clients/x;uid=0"}, withClients, withUser("10004:10000"))
	if out, events := friend.output(t); out != message {
		t.Errorf("the friend: got %q\n%s", out, events)
	}
	_, events := server.output(t)
	told := map[float64]int{}
	for line := range strings.Lines(events) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if uid, ok := e["uid"].(float64); ok {
			told[uid]++
		}
	}
	// The log shows only a few refusals a second.
	if len(told) != 2 || told[10002] == 0 || told[10004] == 0 {
		t.Errorf("users in the log: %v, want 10002 and 10004 alone\n%s", told, events)
	}
}

// count returns the numbers from 1, for a loop in a script.
func count(n int) string { return "$(seq " + strconv.Itoa(n) + ")" }

func TestF7ImpostorIsKeptOutOrFoundOut(t *testing.T) {
	t.Parallel()
	const tries = 20
	t.Run("read-only mount", func(t *testing.T) {
		t.Parallel()
		for _, user := range []string{"10002:10000", "0:10000"} {
			volume := newVolume(t)
			startServer(t, volume)
			thief := runClient(t, volume, nil, readOnly, withUser(user), scratch, shell(`
				try() {
					! said=$("$@" 2>&1) || { echo "it may: $*"; exit 1; }
					case $said in *'Read-only file system'* | *EROFS*) ;; *) echo "$*: $said"; exit 1 ;; esac
				}
				cd /run/uds
				try rm -f uds_socket
				try mv uds_socket old
				try ln -s elsewhere new
				try mkfifo new
				try chmod 0777 uds_socket
				try client --bind /run/uds/new
				! mount -o remount,rw /run/uds 2>&-
				client --log-level warn`))
			if out, events := thief.output(t); thief.exitCode(t) != 0 || out != message {
				t.Errorf("%s: exit %d, %s\n%s", user, thief.exitCode(t), out, events)
			}
		}
	})
	t.Run("writable", func(t *testing.T) {
		t.Parallel()
		volume := newVolume(t)
		server := startServer(t, volume, on(connecting))
		server.signal(t, "KILL")
		server.awaitExit(t)
		impostor := startServer(t, volume, on(connecting), withUser("10003:10000"), shell("rm -f * .[!.]*; exec server"))
		each := "for a in " + strings.ReplaceAll(connecting, ",", " ") + "; do "
		careful := runClient(t, volume, nil, scratch, shell(mustFail+`
			for i in `+count(tries/2)+`; do
				`+each+` fail client --log-level warn --connect $a --require-uid 10001 secret; done
			done`))
		out, events := careful.output(t)
		const told = "the server runs as user 10003, not 10001 as --require-uid requires; nothing was sent"
		if careful.exitCode(t) != 0 || strings.Count(events, "\n") != tries || strings.Count(events, told) != tries {
			t.Errorf("exit %d, %s\n%s", careful.exitCode(t), out, events)
		}
		careless := runClient(t, volume, nil, shell(each+` client --log-level warn --connect $a careless; done`))
		if out, events := careless.output(t); out != "carelesscareless" {
			t.Errorf("the impostor serves no client: %q\n%s", out, events)
		}
		await(t, "the impostor to report what it received", func() bool {
			_, events = impostor.output(t)
			return strings.Count(events, "no data from") == tries+2
		})
		if strings.Contains(events, "secret") || strings.Count(events, "received 'careless'") != 2 ||
			strings.Count(strings.ReplaceAll(events, "received ''", ""), "received") != 2 {
			t.Errorf("the impostor received:\n%s", events)
		}
	})
	t.Cleanup(func() { // after the parallel parts
		testkit.ReportFault(t, testkit.FaultRow{
			ID: "F7", Count: tries,
			Done:    "a client container of the stack tries to unlink and rename it, and to bind and make others beside it; and if the volume is writable, a server of another user takes the path of a killed one, and clients connect with `--require-uid 10001`",
			Outcome: "EROFS for all, as root too, and connecting works; 20 clients refused the impostor, which read 0 bytes",
		})
	})
}

// The clock belongs to the whole machine: a test must not set it, and a
// container may not.
func TestF34ClockIsNotForTestsToSet(t *testing.T) {
	t.Parallel()
	server := startServer(t, newVolume(t))
	_, said := server.try(t, []string{"date", "-s", "2001-01-01"}, tcexec.WithUser("0"))
	refusal := "can't set date: Operation not permitted" // busybox prints this, and exits with 0
	if !strings.Contains(said, refusal) {
		t.Fatalf("date -s: %s", said)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F34", Done: "the clock of the machine is not the tests' to set; tried in a container of the stack, as root: `date -s`",
		Outcome: "date: " + refusal + " (EPERM), and a time namespace moves only the monotonic clock; all deadlines go by that, as `time.Now` has it, which setting the clock does not change",
	})
}
