package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
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
				s := statusOf(t, d+"/admin")
				if s.Connections != len(held) || s.Refused[tt.cause] != 1 {
					t.Errorf("%d connections are held: %+v", len(held), s)
				}
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
					if s := statusOf(t, d+"/admin"); s.Refused[tt.cause] != 1+len(kinds) || s.Connections != len(held) {
						t.Errorf("%+v", s)
					}
				}
				// The server's own user gains little.
				awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == len(held) })
				var more []net.Conn
				for i := range 3 * beside {
					k := kinds[i%len(kinds)]
					conn, err := named(k.network, d+"/"+k.path, fmt.Sprintf("@udsecho.healthcheck.%s.own.%d", d, i))
					if err == nil {
						more = append(more, conn)
					}
				}
				if s := statusOf(t, d+"/admin"); len(more) != beside || s.Connections != len(held)+beside {
					t.Errorf("%d connections are beside the limit, not %d: %+v", len(more), beside, s)
				}
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

// A shortage is a server that can open no further file, and clients that have
// connected anyway: some before and some after. All have sent something.
type shortage struct {
	server       *process
	held, behind []*net.UnixConn
}

// waiting is the message that they have sent.
const waiting = "waiting"

func runShort(t *testing.T, files uint64, n int, args ...string) (s shortage) {
	t.Helper()
	d := dir(t)
	s.server = serve(t, d, append([]string{"--listen", "s,seqpacket:q"}, args...)...)
	for i := range n / 2 {
		s.held = append(s.held, connectEither(t, d, i))
		check(t, echoed(s.held[i], message))
	}
	if files == 0 {
		files = uint64(countOpen(t, s.server, func(string) bool { return true }))
	}
	limitFiles(t, s.server, files)
	for i := range n {
		conn := connectEither(t, d, i)
		_, err := io.WriteString(conn, waiting)
		check(t, err)
		s.behind = append(s.behind, conn)
	}
	s.server.Err.Await(t, 1, "cannot accept: too many open files")
	return s
}

func TestF47ClientsThatWaitForADescriptorAtSIGTERMAreServedOrCounted(t *testing.T) {
	t.Parallel()
	const n = 20
	t.Run("a server", func(t *testing.T) {
		// The descriptors of clients that leave become free.
		t.Run("whose clients leave", func(t *testing.T) {
			t.Parallel()
			s := runShort(t, 0, n, "--drain-timeout", patience.String())
			s.server.Signal(t, syscall.SIGTERM)
			awaitEmpty(t, s.server.Cmd.Dir)
			for _, conn := range s.held {
				check(t, conn.Close())
			}
			// Each client needs the same free descriptor, so each leaves when
			// it is served.
			for i, conn := range s.behind {
				got := make([]byte, len(waiting))
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != waiting {
					t.Errorf("client %d of %d got %q, %v", i, n, got, err)
				}
				check(t, conn.Close())
			}
			s.server.WantStatus(t, 0)
			if strings.Contains(s.server.Err.String(), "rejected") {
				t.Errorf("it rejected clients:\n%s", &s.server.Err)
			}
		})
		for name, files := range map[string]uint64{"whose clients stay": 0, "that may open nothing": 3} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := runShort(t, files, n, "--drain-timeout", "1s", "--log-format", "json")
				s.server.Signal(t, syscall.SIGTERM)
				told := 0
				for i, conn := range s.behind {
					got, err := io.ReadAll(conn)
					if len(got) == 0 {
						told++
					} else if string(got) != waiting { // the server's locks and other files are closed first
						t.Errorf("client %d of %d got %q", i, n, got)
					}
					if err != nil && !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("client %d of %d: %v", i, n, err)
					}
				}
				if told < n/2 {
					t.Errorf("only %d of %d are rejected", told, n)
				}
				s.server.WantStatus(t, 0)
				wantWords(t, s.server.Err.String(), fmt.Sprintf("rejected %d waiting clients: no descriptor became free for them", told), `"cause":"system"`,
					fmt.Sprintf(`"refused":%d`, told))
			})
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F47", Done: "clients that have connected to a server that may open no further file, at SIGTERM: its other clients leave; stay; or nothing comes free at all", Count: 3 * n,
		Outcome: "all served once descriptors came free; where none did by the drain timeout, their connections closed, their number counted and in the log",
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
