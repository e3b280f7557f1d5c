package main_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/faults"
)

// healthy asks the server at all addresses, two at a time, so often.
func healthy(t *testing.T, d string, n int, addrs ...string) {
	t.Helper()
	args := []string{"server", "healthcheck", "--timeout", "20s"}
	for _, a := range addrs {
		args = append(args, "--listen", a)
	}
	for range n / 2 {
		checks := []*process{start(t, d, args...), start(t, d, args...)}
		for _, c := range checks {
			if status := c.status(t); status != 0 {
				t.Errorf("health check: exit status %d, %q", status, &c.err)
			}
		}
	}
}

// named connects under a name of its own; without an error it has had an echo.
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
	const beside, checks = 8, 10
	addrs := []string{"stream:s", "seqpacket:q", "datagram:d", "files:f"}
	kinds := []struct{ network, path string }{{"unix", "s"}, {"unixpacket", "q"}}
	asked := 0
	var mu sync.Mutex
	t.Run("at the limit of", func(t *testing.T) {
		for name, tt := range map[string]struct {
			cause string
			run   []string // how the server is run
			args  []string
			most  int // connections that one user gets
		}{
			"connections": {"connections", nil, []string{"--max-connections", "8", "--max-per-user", "0"}, 8},
			"one user":    {"user_connections", nil, []string{"--max-connections", "100", "--max-per-user", "8"}, 8},
			"both":        {"user_connections", nil, []string{"--max-connections", "8", "--max-per-user", "8"}, 8},
			"open files":  {"connections", []string{"prlimit", "--nofile=240:240"}, []string{"--max-per-user", "0"}, 0},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				d := open(t)
				args := slices.Concat(tt.run, []string{bin + "/server", "--admin", "admin", "--mode", "0666"}, tt.args)
				for _, a := range addrs {
					args = append(args, "--listen", a)
				}
				server := start(t, d, args...)
				server.err.await(t, 1, "waiting for a ")

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
				healthy(t, d, checks, addrs...)
				statusOf(t, d+"/admin") // it has descriptors of its own

				// The name is worth nothing to others.
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
				// And of little to the server's own user.
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
				healthy(t, d, checks, addrs...)
				check(t, echoed(held[0], message))
				closeAll(t, held)
				if strings.Contains(server.err.String(), "too many open files") {
					t.Errorf("descriptors were lacking:\n%s", &server.err)
				}
				server.stop(t)
				mu.Lock()
				defer mu.Unlock()
				asked += 2 * checks
			})
		}
	})
	faults.Report(t, faults.Row{
		ID: "F39", Done: "health checks of all types, two at a time, of servers that are full: of connections, of those of the server's own user, of open files", Count: asked,
		Outcome: fmt.Sprintf("all exit 0; others turned away as before, under the name of a health check too; never more than %d connections beside the limits", beside),
	})
}
