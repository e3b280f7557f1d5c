package main_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/testkit"
)

// TestSoak makes 50 clients of all types transfer with retry while one fault
// follows another: for 4 s, for 30 s with `make stress`, or for SOAK, as set
// by `make soak`.
func TestSoak(t *testing.T) {
	const clients = 50
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK"), testkit.Count("4s", "30s")))
	check(t, err)
	seed := testkit.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := &soak{T: t, dir: dir(t)}
	addrs, flags := sockets(s.dir)
	s.args = append([]string{"server", "--log-level", "warn", "--chunk", "4096", "--takeover", "--drain-timeout", "500ms"}, flags...)
	s.server = start(t, s.dir, s.args...)

	// Some of the clients connect through an unreliable proxy.
	lines := dir(t)
	var proxies []*testkit.Proxy
	for _, a := range addrs[:2] {
		line := addr.Addr{Type: a.Type, Path: lines + "/" + string(a.Type)}
		proxies = append(proxies, testkit.StartProxy(t, seed, a.Network(), line.Path, a.Path, 1<<20))
		addrs = append(addrs, line)
	}
	f := launch(t, seed, clients, addrs...)

	faults := map[string]func(){
		"SIGKILL":              func() { s.kill(); s.start() },
		"SIGKILL at the start": func() { s.kill(); s.start(); s.kill(); s.start() },
		"SIGTERM":              func() { s.server.Signal(t, syscall.SIGTERM); s.wantEnd(s.server); s.start() },
		"takeover":             s.takeOver,
		"SIGSTOP": func() {
			s.server.Signal(t, syscall.SIGSTOP)
			time.Sleep(time.Duration(rng.Int64N(int64(500 * time.Millisecond))))
			s.server.Signal(t, syscall.SIGCONT)
		},
		"socket file removed": func() { s.removeFile(addrs[rng.IntN(3)].Path) },
	}
	names := slices.Sorted(maps.Keys(faults))
	seen := map[string]int{}
	defer func() {
		sum := f.finish(t)
		for _, p := range proxies {
			for name, n := range p.Faults() {
				seen["line: "+name] += n
			}
		}
		var list []string
		for _, name := range slices.Sorted(maps.Keys(seen)) {
			list = append(list, fmt.Sprintf("%s %d", name, seen[name]))
		}
		t.Logf("%v, %d clients, FAULT_SEED=%d\nfaults: %s\n%v", duration, clients, seed, strings.Join(list, ", "), sum)
	}()
	f.await(t, s.server)
	for end := time.Now().Add(duration); time.Now().Before(end); {
		name := names[rng.IntN(len(names))]
		faults[name]()
		f.await(t, s.server)
		seen[name]++
	}
	f.finish(t)
	s.server.Stop(t)
}

// A soak is the server of a soak test, whichever process it is.
type soak struct {
	*testing.T
	dir    string
	args   []string
	server *process
}

func (s *soak) start() { s.server = start(s.T, s.dir, s.args...) }

func (s *soak) kill() {
	s.server.Signal(s.T, syscall.SIGKILL)
	<-s.server.Ended
}

func (s *soak) wantEnd(server *process) {
	s.Helper()
	if status := server.Status(s.T); status != 0 {
		s.Fatalf("exit status is %d after:\n%s", status, &server.Err)
	}
}

func (s *soak) takeOver() {
	old := s.server
	s.start()
	s.wantEnd(old)
}

// removeFile removes a socket file, which the server notices.
func (s *soak) removeFile(path string) {
	renewed := "listening again"
	n := strings.Count(s.server.Err.String(), renewed)
	check(s.T, os.Remove(path))
	s.server.Err.Await(s.T, n+1, renewed)
}
