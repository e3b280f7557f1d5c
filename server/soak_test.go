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
	d := dir(t)
	addrs, flags := sockets(d)
	args := append([]string{"server", "--log-level", "warn", "--chunk", "4096", "--takeover", "--drain-timeout", "500ms"}, flags...)
	server := start(t, d, args...)

	// Some of the clients connect through an unreliable proxy.
	lines := dir(t)
	var proxies []*testkit.Proxy
	for _, a := range addrs[:2] {
		line := addr.Addr{Type: a.Type, Path: lines + "/" + string(a.Type)}
		proxies = append(proxies, testkit.StartProxy(t, seed, a.Network(), line.Path, a.Path, 1<<20))
		addrs = append(addrs, line)
	}
	f := launch(t, seed, clients, addrs...)

	kill := func() { // and start again
		server.Signal(t, syscall.SIGKILL)
		<-server.Ended
		server = start(t, d, args...)
	}
	faults := map[string]func(){
		"SIGKILL":              kill,
		"SIGKILL at the start": func() { kill(); kill() },
		"SIGTERM": func() {
			server.Signal(t, syscall.SIGTERM)
			server.WantStatus(t, 0)
			server = start(t, d, args...)
		},
		"takeover": func() {
			old := server
			server = start(t, d, args...)
			old.WantStatus(t, 0)
		},
		"SIGSTOP": func() {
			server.Signal(t, syscall.SIGSTOP)
			time.Sleep(time.Duration(rng.Int64N(int64(500 * time.Millisecond))))
			server.Signal(t, syscall.SIGCONT)
		},
		"socket file removed": func() {
			n := server.Err.Count("listening again")
			check(t, os.Remove(addrs[rng.IntN(3)].Path))
			server.Err.Await(t, n+1, "listening again")
		},
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
	f.await(t, server)
	for end := time.Now().Add(duration); time.Now().Before(end) && !t.Failed(); {
		name := names[rng.IntN(len(names))]
		faults[name]()
		f.await(t, server)
		seen[name]++
	}
	f.finish(t)
	server.Stop(t)
}
