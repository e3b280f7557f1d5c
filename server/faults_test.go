package main_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// awaitServer waits for a server that logs nothing, by its admin socket.
func awaitServer(t *testing.T, admin string) {
	t.Helper()
	testkit.Await(t, func() error {
		_, err := tryGet(t, admin, "/status")
		return err
	})
}

// connect returns a connection of type network, "unix" or "unixpacket".
func connect(t *testing.T, network, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(5*patience)))
	return conn
}

// connectEither connects to d/s or d/q, a stream or a seqpacket socket, in turns.
func connectEither(t *testing.T, d string, i int) *net.UnixConn {
	t.Helper()
	return connect(t, []string{"unix", "unixpacket"}[i%2], d+[]string{"/s", "/q"}[i%2])
}

// echoed sends words and returns an error if the echo differs.
func echoed(conn net.Conn, words string) error {
	if _, err := io.WriteString(conn, words); err != nil {
		return err
	}
	got := make([]byte, len(words))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != words {
		return fmt.Errorf("sent %q, got back %q", words, got)
	}
	return nil
}

// p99 returns the 99th percentile of consecutive echoes.
func p99(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	took := make([]time.Duration, 5000)
	for i := range took {
		began := time.Now()
		check(t, echoed(conn, message))
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

// A footprint is the resource use that a server reports.
type footprint struct {
	connections, descriptors, goroutines int
	memory                               float64 // resident, in MiB
}

func footprintOf(t *testing.T, admin string) footprint {
	t.Helper()
	m := get(t, admin, "/metrics")
	return footprint{
		int(metric(t, m, "udsecho_connections")), int(metric(t, m, "process_open_fds")), int(metric(t, m, "go_goroutines")),
		metric(t, m, "process_resident_memory_bytes") / (1 << 20),
	}
}

func (f footprint) String() string {
	return fmt.Sprintf("%.1f MiB, %d descriptors, %d goroutines", f.memory, f.descriptors, f.goroutines)
}

func TestF8RemovedSocketFilesAreRecreated(t *testing.T) {
	t.Parallel()
	d := dir(t)
	var servers []*process
	var addrs []string
	for i, more := range [][]string{nil, {"--takeover"}} {
		var own []string
		for _, kind := range kinds {
			own = append(own, fmt.Sprintf("%[1]s:%[1]s%[2]d", kind, i))
		}
		addrs = append(addrs, own...)
		servers = append(servers, serve(t, d, append(more, "--listen", strings.Join(own, ","))...))
	}
	rounds := testkit.Count(2, 5)
	slowest := time.Duration(0)
	for round := range rounds {
		var goOn []func()
		for _, s := range servers {
			goOn = append(goOn, s.Pause(t))
		}
		for _, a := range addrs {
			_, path, _ := strings.Cut(a, ":")
			check(t, os.Remove(d+"/"+path))
			health := start(t, d, "server", "healthcheck", "--listen", a)
			health.WantStatus(t, 1)
			wantWords(t, health.Err.String(), "no such file or directory (ENOENT)")
		}
		began := time.Now()
		for i, s := range servers {
			goOn[i]()
			s.Err.Await(t, 3*(round+1), "was removed: listening again")
		}
		slowest = max(slowest, time.Since(began))
		wantHealthy(t, d, addrs...)
	}
	servers[0].Terminate(t)
	servers[1].Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F8", Done: "socket files of three types removed, with and without `--takeover`", Count: rounds * len(addrs),
		Outcome: fmt.Sprintf("the health check failed; every socket was recreated, in %.1f s at most", slowest.Seconds()),
	})
}

func TestF17ClientsThatNeverRead(t *testing.T) {
	t.Parallel()
	d := dir(t)
	// Its memory is measured, and its speed reported.
	server := start(t, d, testkit.Plain(t, "server"), "--admin", "admin", "--listen", "s,seqpacket:q", "--chunk", "4096",
		"--write-timeout", "6s", "--log-level", "warn")
	awaitServer(t, d+"/admin")
	honest := connect(t, "unix", d+"/s")
	alone := p99(t, honest)
	before := footprintOf(t, d+"/admin")

	const n = 100
	var taken atomic.Int64
	var filled sync.WaitGroup
	for i := range n {
		conn := connectEither(t, d, i)
		check(t, conn.SetWriteDeadline(time.Now().Add(time.Second)))
		filled.Go(func() {
			for {
				n, err := conn.Write(make([]byte, 4096))
				taken.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	filled.Wait()
	during := footprintOf(t, d+"/admin")
	beside := p99(t, honest)
	// What was taken lies in the kernel's buffers.
	if mib := float64(taken.Load()) / (1 << 20); during.memory-before.memory > mib/4 {
		t.Errorf("memory is %.1f MiB, was %.1f, with %.1f MiB taken from the clients", during.memory, before.memory, mib)
	}
	awaitStatus(t, d+"/admin", func(s status) bool { return s.Refused["unread"] == n && s.Connections == 1 })
	check(t, echoed(honest, message))
	check(t, honest.Close())
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F17", Done: "clients of streams and seqpacket that send all they can and never read", Count: n,
		Outcome: fmt.Sprintf("%.1f MiB taken, then no more; the server grew from %.1f to %.1f MiB; p99 of another client %d µs, alone %d µs; all disconnected at `--write-timeout`",
			float64(taken.Load())/(1<<20), before.memory, during.memory, beside.Microseconds(), alone.Microseconds()),
	})
}

func TestF18SlowAndIdleClients(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := start(t, d, "server", "--admin", "admin", "--listen", "s,seqpacket:q", "--idle-timeout", "2s", "--log-level", "warn")
	awaitServer(t, d+"/admin")
	n := testkit.Count(50, 200)
	var idle []*net.UnixConn
	for i := range n {
		conn := connectEither(t, d, i)
		if i%4 < 2 { // half of them send something first
			check(t, echoed(conn, "then silence"))
		}
		idle = append(idle, conn)
	}
	honest, slow := connect(t, "unix", d+"/s"), connect(t, "unix", d+"/s")
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	echoes := 0
	for s := (status{}); s.Refused["idle"] < n; s = statusOf(t, d+"/admin") {
		check(t, echoed(honest, message))
		if echoes++; echoes%5 == 0 { // a byte at a time, and slower than other clients
			check(t, echoed(slow, "x"))
		}
		<-again.C
	}
	for _, conn := range idle {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read gives %v", err)
		}
	}
	if s := statusOf(t, d+"/admin"); s.Connections != 2 || s.Refused["idle"] != n {
		t.Errorf("%+v", s)
	}
	check(t, errors.Join(echoed(honest, message), echoed(slow, "x"), honest.Close(), slow.Close()))
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F18", Done: "clients of streams and seqpacket that say nothing, or nothing more", Count: n,
		Outcome: "all disconnected at `--idle-timeout` and counted; one that sends, and one that sends a byte at a time, served throughout",
	})
}

func TestF19CrowdAtTheConnectionLimit(t *testing.T) {
	testkit.NeedRoot(t, "to be another user")
	t.Parallel()
	const limit, perUser, attempts, others = 10_000, 9_000, 20_000, 2000
	d := dir(t)
	// Its memory is reported.
	server := start(t, d, testkit.Plain(t, "server"), "--admin", "admin", "--mode", "0666", "--log-level", "warn", "--max-connections", fmt.Sprint(limit))
	// Once it has served a client, everything that it needs is open.
	clientEchoes(t, d, "--retry", patience.String())
	awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == 0 })
	before := footprintOf(t, d+"/admin")

	// crowd tries to connect n times, and keeps the connections that are served.
	crowd := func(n int) (held []net.Conn, _ error) {
		for range n {
			conn, err := net.Dial("unix", d+"/uds_socket")
			for errors.Is(err, unix.EAGAIN) { // the backlog is full
				conn, err = net.Dial("unix", d+"/uds_socket")
			}
			if err != nil {
				return held, err
			}
			if echoed(conn, "x") == nil {
				held = append(held, conn)
			} else {
				_ = conn.Close()
			}
		}
		return held, nil
	}
	var mu sync.Mutex
	var held, theirs []net.Conn
	var crowds sync.WaitGroup
	for range 8 {
		crowds.Go(func() {
			conns, err := crowd(attempts / 8)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			held = append(held, conns...)
		})
	}
	over := make(chan struct{})
	go func() { defer close(over); crowds.Wait() }()
	most := 0
	for watching := true; watching; {
		most = max(most, statusOf(t, d+"/admin").Connections)
		select {
		case <-over:
			watching = false
		default:
		}
	}
	if len(held) != perUser || most > perUser {
		t.Errorf("one user holds %d connections, %d at most, not %d", len(held), most, perUser)
	}
	asStranger(t, func() (err error) {
		theirs, err = crowd(others)
		return err
	})
	during := footprintOf(t, d+"/admin")
	refused := statusOf(t, d+"/admin").Refused
	if during.connections != limit || len(theirs) != limit-perUser ||
		refused["user_connections"] != attempts-perUser || refused["connections"] != others-len(theirs) {
		t.Errorf("%d connections are open, %d of them the other user's; refused are %v", during.connections, len(theirs), refused)
	}
	check(t, echoed(held[0], message))

	closeAll(t, append(held, theirs...))
	var after footprint
	testkit.Await(t, func() error {
		after = footprintOf(t, d+"/admin")
		if after.connections > 0 || after.descriptors > before.descriptors || after.goroutines > before.goroutines {
			return fmt.Errorf("before: %v, after: %v", before, after)
		}
		return nil
	})
	clientEchoes(t, d)
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F19", Done: "attempts of one user to connect, at `--max-connections 10000`", Count: attempts,
		Outcome: fmt.Sprintf("%d held, %d refused and counted; another user got the other %d; %d held in all, never more; before: %v; during: %v; after: %v (Go gives memory back over minutes)",
			len(held), refused["user_connections"], len(theirs), during.connections, before, during, after),
	})
}

func TestF20FullBacklogIsRetried(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--backlog", "1")
	goOn := server.Pause(t)
	var waiting []net.Conn
	for {
		conn, err := net.Dial("unix", d+"/uds_socket")
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		check(t, err)
		waiting = append(waiting, conn)
	}
	const n = 30
	var clients []*process
	for range n {
		client := start(t, d, "client", "--retry", "60s")
		client.Err.Await(t, 1, "connecting to")
		clients = append(clients, client)
	}
	late := start(t, d, "client", "--retry", "200ms")
	late.WantStatus(t, 1)
	wantWords(t, late.Err.String(), "resource temporarily unavailable (EAGAIN): the server's backlog is full", "tried for 200ms")
	goOn()
	for _, client := range clients {
		gotBack(t, client)
	}
	for _, conn := range waiting {
		check(t, errors.Join(echoed(conn, "x"), conn.Close()))
	}
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F20", Done: "clients with `--retry` at a full backlog of a stopped server", Count: n,
		Outcome: "all served once it continued; one whose `--retry` was over before reported that, exit 1",
	})
}

func TestF21ServerWithoutDescriptorsWaitsAndRecovers(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serving(t, start(t, d, testkit.Plain(t, "server"))) // its processor time is measured
	busyBefore, lacking := server.CPUTime(t), time.Now()
	lift := limitFiles(t, server, 3)
	const n = 20
	var clients []*process
	for range n {
		clients = append(clients, start(t, d, "client"))
	}
	for _, client := range clients {
		client.Err.Await(t, 1, "sending ")
	}
	// The log has at most 5 lines a second: the sixth takes that long.
	server.Err.Await(t, 6, "cannot accept: too many open files: trying again in 100ms")
	busy, lacked := server.CPUTime(t)-busyBefore, time.Since(lacking)
	if busy > lacked/4 { // it would use all that it can get
		t.Errorf("the server was busy for %v of %v", busy, lacked)
	}
	began := time.Now()
	lift()
	for _, client := range clients {
		gotBack(t, client)
	}
	recovered := time.Since(began)
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F21", Done: "clients that connect while the server may open no file", Count: n,
		Outcome: fmt.Sprintf("a pause of 100 ms after each failure, %d ms of processor time in %.1f s; all served %.2f s after the limit was lifted",
			busy.Milliseconds(), lacked.Seconds(), recovered.Seconds()),
	})
}

func TestF22StoppedServerContinues(t *testing.T) {
	t.Parallel()
	d := dir(t)
	// The deadlines are shorter than the stop, which must not count.
	server := serve(t, d, "--idle-timeout", "3s", "--write-timeout", "3s", "--listen", "s,seqpacket:q")
	const n = 20
	var conns []*net.UnixConn
	for i := range n {
		conns = append(conns, connectEither(t, d, i))
		check(t, echoed(conns[i], "before"))
	}
	goOn := server.Pause(t)
	over := time.After(5 * time.Second)
	for i := range n {
		conns = append(conns, connectEither(t, d, i))
	}
	for _, conn := range conns {
		_, err := io.WriteString(conn, message[:16])
		check(t, err)
	}
	for _, impatient := range []*process{
		start(t, d, "server", "healthcheck", "--listen", "s", "--timeout", "1s"),
		start(t, d, "client", "--connect", "s", "--timeout", "1s"),
	} {
		impatient.WantStatus(t, 1)
		if !regexp.MustCompile("connected, but no echo in time|no answer for 1s").MatchString(impatient.Err.String()) {
			t.Errorf("%q: error %q", impatient.Cmd.Args, &impatient.Err)
		}
	}
	waiting := start(t, d, "client", "--connect", "s")
	<-over // this is the time that the fault takes
	goOn()
	for _, conn := range conns {
		got := make([]byte, 16)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != message[:16] {
			t.Fatalf("got back %q, %v", got, err)
		}
		check(t, conn.Close())
	}
	gotBack(t, waiting)
	wantHealthy(t, d, "s")
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F22", Done: "clients that connect and send, half of them connected before, while the server is stopped (SIGSTOP) for 5 s; with `docker pause`: `TestPauseByTheEngineIsWaitedForOrReported`", Count: len(conns),
		Outcome: "connecting and sending succeed; the health check and `--timeout` fail; all echoed when it continues, none disconnected because of the time that it was stopped",
	})
}

func TestF23SIGTERMWithDataInFlight(t *testing.T) {
	t.Parallel()
	sent := make([]byte, 16<<20)
	_, err := rand.Read(sent)
	check(t, err)
	n := testkit.Count(20, 100)
	longest := time.Duration(0)
	for i := range n {
		server := serve(t, dir(t), "--chunk", "65536", "--log-format", "plain")
		conn := connect(t, "unix", server.Cmd.Dir+"/uds_socket")
		written := make(chan error, 1)
		go func() {
			_, err := conn.Write(sent)
			written <- errors.Join(err, conn.CloseWrite())
		}()
		got := make([]byte, len(sent))
		after := i * len(sent) / n
		_, err := io.ReadFull(conn, got[:after])
		check(t, err)
		signalled := time.Now()
		server.Signal(t, syscall.SIGTERM)
		_, err = io.ReadFull(conn, got[after:])
		check(t, errors.Join(err, <-written))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) || !bytes.Equal(got, sent) {
			t.Errorf("SIGTERM after %d bytes: received other bytes, and at the end %v", after, err)
		}
		server.WantStatus(t, 0)
		longest = max(longest, time.Since(signalled))
		wantFiles(t, server.Cmd.Dir)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F23", Done: "SIGTERM at another hundredth of 16 MiB in flight; with `docker stop`: `TestStopByTheEngineDrains`", Count: n,
		Outcome: fmt.Sprintf("0 bytes lost, exit 0, at most %.2f s later", longest.Seconds()),
	})
}

func TestF32VolumeFullReadOnlyOrGone(t *testing.T) {
	t.Parallel()
	need(t, "nsenter", "util-linux")
	testkit.NeedRoot(t, "to mount")
	testkit.NeedNamespace(t, "--mount")
	on := func(options, path string) *process {
		d := dir(t)
		check(t, os.Mkdir(d+"/vol", 0o755))
		const mount = `mount -t tmpfs -o "$1" none vol && exec "$0" --listen "$2"`
		return start(t, d, "unshare", "--mount", "sh", "-c", mount, testkit.Program("server"), options, path)
	}
	for _, tt := range []struct {
		name, options, path, words string
	}{
		{"full", "nr_inodes=2", "vol/s", "no space left on device (ENOSPC): the file system of vol is full; make room"},
		{"full to the last", "nr_inodes=1", "vol/s", "no space left on device (ENOSPC): the file system of vol is full; make room"},
		{"read-only", "ro", "vol/s", "read-only file system (EROFS): directory vol is on a read-only file system or mount; mount it writable"},
		{"gone", "size=4k", "vol/none/s", "no such file or directory (ENOENT): directory vol/none does not exist; create it, or mount the volume there"},
	} {
		server := on(tt.options, tt.path)
		server.WantStatus(t, 1)
		if stderr := server.Err.String(); server.Out.String() != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.words) {
			t.Errorf("%s: output %q, error %q", tt.name, &server.Out, stderr)
		}
	}

	server := serving(t, on("nr_inodes=3", "vol/s")) // its own directory, a lock, a socket
	d := server.Cmd.Dir
	vol := fmt.Sprintf("/proc/%d/cwd/vol", server.Pid())
	live := connect(t, "unix", vol+"/s")
	check(t, echoed(live, "before"))
	inside := func(args ...string) {
		t.Helper()
		start(t, d, append([]string{"nsenter", fmt.Sprintf("--target=%d", server.Pid()), "--mount"}, append(args, d+"/vol")...)...).WantStatus(t, 0)
	}
	// Full: the removed socket uses its inode as long as it is open.
	check(t, os.Remove(vol+"/s"))
	server.Err.Await(t, 2, "vol/s was removed, and cannot be recreated now: listen again on stream:vol/s: no space left on device (ENOSPC)")
	check(t, echoed(live, "the volume is full"))
	inside("mount", "-o", "remount,nr_inodes=4")
	server.Err.Await(t, 1, "vol/s was removed: listening again")
	// Read-only: connecting needs no write access.
	inside("mount", "-o", "remount,bind,ro")
	check(t, errors.Join(echoed(live, "the volume is read-only"), echoed(connect(t, "unix", vol+"/s"), "new")))
	inside("mount", "-o", "remount,bind,rw")
	// Removed, and then back.
	inside("umount", "-l")
	server.Err.Await(t, 2, "vol/s was removed: listening again") // in the directory below
	check(t, echoed(live, "the volume is gone"))
	check(t, echoed(connect(t, "unix", d+"/vol/s"), "new"))
	check(t, live.Close())
	server.Signal(t, syscall.SIGTERM)
	server.WantStatus(t, 0)
	wantFiles(t, d+"/vol")
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F32", Done: "volumes full, read-only and gone, at start and under a live connection", Count: 7,
		Outcome: "at start one line with ENOSPC, EROFS or ENOENT and the cure, exit 1; the live connection continues; a removed socket is recreated once there is room",
	})
}

func TestF33BadPeersAndTheLog(t *testing.T) {
	t.Parallel()
	const n = 10_000
	lines := 0
	var took time.Duration
	for _, format := range []string{"plain", "console", "json"} {
		d := dir(t)
		server := start(t, d, "server", "--log-format", format, "--log-level", "warn", "--max-connections", "1", "--admin", "admin", "--listen", "s,datagram:d")
		awaitServer(t, d+"/admin")
		first := connect(t, "unix", d+"/s")
		check(t, echoed(first, "mine"))
		began := time.Now()
		name := func(network string, i int) *net.UnixAddr {
			return &net.UnixAddr{Net: network, Name: fmt.Sprintf("@%s\x00%s%d", hostile, format, i)}
		}
		for i := range n / 2 { // each with a name of its own, and each above the limit
			err := error(unix.EAGAIN)
			for errors.Is(err, unix.EAGAIN) {
				var conn net.Conn
				if conn, err = net.DialUnix("unix", name("unix", i), &net.UnixAddr{Net: "unix", Name: d + "/s"}); err == nil {
					err = conn.Close()
				}
			}
			check(t, err)
		}
		bad, err := net.ListenUnixgram("unixgram", name("unixgram", n))
		check(t, err)
		nameless, err := net.Dial("unixgram", d+"/d")
		check(t, err)
		to := &net.UnixAddr{Net: "unixgram", Name: d + "/d"}
		for range n / 4 {
			_, err := nameless.Write([]byte(hostile))
			check(t, err)
			_, _, err = bad.WriteMsgUnix([]byte(hostile), unix.UnixRights(0), to)
			if !errors.Is(err, unix.EPERM) { // with SO_PASSRIGHTS off the kernel rejects them itself
				check(t, err)
			}
		}
		check(t, errors.Join(bad.Close(), nameless.Close()))
		s := awaitStatus(t, d+"/admin", func(s status) bool { return s.Refused["nameless"] == n/4 && s.Refused["connections"] == n/2 })
		if s.Connections != 1 {
			t.Errorf("%+v", s)
		}
		check(t, errors.Join(echoed(first, "mine"), first.Close()))
		awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == 0 })
		took += time.Since(began)
		seconds := int(time.Since(began)/time.Second) + 1
		server.Stop(t)

		log := server.Err.String()
		wantPrintable(t, log)
		if format == "json" {
			wantJSON(t, log)
		}
		got := strings.Count(log, "\n")
		if got < 2 || got > 15*seconds { // for three causes
			t.Errorf("%s: %d lines in %d s", format, got, seconds)
		}
		lines += got
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F33", Done: "in each of three formats, bad peers with terminal codes and new lines in their names and messages: too many, nameless, with descriptors", Count: 3 * n,
		Outcome: fmt.Sprintf("all counted; %d lines in %.1f s, 5 a second and cause at most; no raw ESC or CR, one record a line", lines, took.Seconds()),
	})
}
