package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
	"golang.org/x/sys/unix"
)

// healthChecks runs health checks on all addresses, two at a time, n times.
func healthChecks(t *testing.T, d string, n int, addrs ...string) {
	t.Helper()
	args := []string{"server", "healthcheck", "--timeout", patience.String(), "--listen", strings.Join(addrs, ",")}
	for range n / 2 {
		one, other := start(t, d, args...), start(t, d, args...)
		one.WantStatus(t, 0)
		other.WantStatus(t, 0)
	}
}

// named connects with a bound name; without an error it has received an echo.
func named(network, path, name string) (net.Conn, error) {
	conn, err := net.DialUnix(network, &net.UnixAddr{Name: name, Net: network}, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, err
	}
	if err = errors.Join(conn.SetDeadline(time.Now().Add(patience)), echoed(conn, "x")); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func closeAll(t *testing.T, conns []net.Conn) {
	t.Helper()
	for _, conn := range conns {
		check(t, conn.Close())
	}
}

func TestF39FullServerIsHealthy(t *testing.T) {
	t.Parallel()
	need(t, "prlimit", "util-linux")
	const beside = 8
	checks := testkit.Count(2, 10)
	addrs := []string{"stream:s", "seqpacket:q", "datagram:d", "files:f"}
	kinds := []struct{ network, path string }{{"unix", "s"}, {"unixpacket", "q"}}
	cases := map[string]struct {
		cause string
		run   []string // the command that runs the server
		args  []string
		most  int // connections that one user gets
	}{
		"connections": {"connections", nil, []string{"--max-connections", "8", "--max-per-user", "0"}, 8},
		"one user":    {"user_connections", nil, []string{"--max-connections", "100", "--max-per-user", "8"}, 8},
		"both":        {"user_connections", nil, []string{"--max-connections", "8", "--max-per-user", "8"}, 8},
		"open files":  {"connections", []string{"prlimit", "--nofile=240:240"}, []string{"--max-per-user", "0"}, 0},
	}
	t.Run("at the limit of", func(t *testing.T) {
		for name, tt := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				d := open(t)
				server := serving(t, start(t, d, slices.Concat(tt.run,
					[]string{testkit.Program("server"), "--admin", "admin", "--mode", "0666", "--listen", strings.Join(addrs, ",")}, tt.args)...))
				var held []net.Conn
				for i := 0; ; i++ {
					k := kinds[i%len(kinds)]
					conn, err := named(k.network, d+"/"+k.path, fmt.Sprintf("@%s.%d", d, i))
					if err != nil {
						break
					}
					held = append(held, conn)
				}
				if tt.most > 0 && len(held) != tt.most {
					t.Errorf("%d connections are held, not %d", len(held), tt.most)
				}
				awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == len(held) && s.Refused[tt.cause] == 1 })
				healthChecks(t, d, checks, addrs...)
				statusOf(t, d+"/admin") // the admin socket has descriptors of its own

				// Other users gain nothing by the name.
				if asRoot() && tt.cause == "connections" {
					asStranger(t, func() error {
						for i, k := range kinds {
							conn, err := named(k.network, d+"/"+k.path, fmt.Sprintf("@udsecho.healthcheck.%s.%d", d, i))
							if err == nil {
								return errors.Join(fmt.Errorf("a stranger is served at %s", k.path), conn.Close())
							}
						}
						return nil
					})
					awaitStatus(t, d+"/admin", func(s status) bool { return s.Refused[tt.cause] == 1+len(kinds) })
				}
				// The server's own user gains little, once the health checks have ended.
				awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == len(held) })
				var more []net.Conn
				for i := range 3 * beside {
					k := kinds[i%len(kinds)]
					conn, err := named(k.network, d+"/"+k.path, fmt.Sprintf("@udsecho.healthcheck.%s.own.%d", d, i))
					if err == nil {
						more = append(more, conn)
					}
				}
				if len(more) != beside {
					t.Errorf("%d connections are beside the limit, not %d", len(more), beside)
				}
				awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == len(held)+beside })
				closeAll(t, more)
				awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == len(held) })
				healthChecks(t, d, checks, addrs...)
				check(t, held[0].SetDeadline(time.Now().Add(patience)))
				check(t, echoed(held[0], message))
				closeAll(t, held)
				if strings.Contains(server.Err.String(), "too many open files") {
					t.Errorf("descriptors were lacking:\n%s", &server.Err)
				}
				server.Stop(t)
			})
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F39", Done: "health checks of all types, two at a time, of servers that are full: of connections, of those of the server's own user, of open files", Count: 2 * checks * len(cases),
		Outcome: fmt.Sprintf("all exit 0; others rejected as before, under the name of a health check too; never more than %d connections beside the limits", beside),
	})
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
	awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == 2 && s.Refused["idle"] == n })
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

// underLoad returns the median and the 99th percentile of the admin socket's
// answer time, for a server run in this way, while 50 clients make it echo as
// much as it can.
func underLoad(t *testing.T, run ...string) (median, p99 time.Duration) {
	t.Helper()
	d := dir(t)
	server := start(t, d, append(run, testkit.Program("server"), "--admin", "admin", "--log-level", "error")...)
	awaitServer(t, d+"/admin")
	load := start(t, d, "uds", "bench", "--connections", "50", "--duration", "1h")
	idle := statusOf(t, d+"/admin").Messages
	awaitStatus(t, d+"/admin", func(s status) bool { return s.Messages > idle+1000 })
	took := make([]time.Duration, 300)
	for i := range took {
		began := time.Now()
		statusOf(t, d+"/admin")
		took[i] = time.Since(began)
	}
	load.Signal(t, syscall.SIGKILL)
	load.WantStatus(t, -1)
	if n := metric(t, get(t, d+"/admin", "/metrics"), "go_sched_gomaxprocs_threads"); n != 2 {
		t.Errorf("%s: Go uses %v processors, one of which the loop keeps", run, n)
	}
	server.Stop(t)
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// The test reports the times and does not judge them, as they depend on the
// machine. Package loop's TestOthersGetTheirTurnsWithOneProcessor counts the
// turns that other goroutines get beside a loop.
func TestF42StatusIsAnsweredWithOneProcessor(t *testing.T) {
	need(t, "taskset", "util-linux")
	var mine unix.CPUSet
	check(t, unix.SchedGetaffinity(0, &mine))
	cpu := 0
	for !mine.IsSet(cpu) {
		cpu++
	}
	median2, two := underLoad(t, "env", "GOMAXPROCS=2")
	median1, one := underLoad(t, "env", "GOMAXPROCS=1", "taskset", "-c", strconv.Itoa(cpu))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F42", Done: "`/status` asked of a server with GOMAXPROCS=1 on one CPU, and of one with two, each under full load of 50 clients", Count: 300,
		Outcome: fmt.Sprintf("with one CPU the median is %.1f ms and p99 %.1f ms, with two %.1f and %.1f", ms(median1), ms(one), ms(median2), ms(two)),
	})
}
