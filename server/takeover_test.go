package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
)

func serveTakeover(t *testing.T, d string, args ...string) *process {
	t.Helper()
	return serveAll(t, d, append([]string{"--takeover", "--log-format", "plain"}, args...)...)
}

func wantAllEcho(t *testing.T, d string) {
	t.Helper()
	for _, a := range places {
		clientEchoes(t, d, "--connect", a)
	}
}

// 48 clients of all types connect, get an echo and close, and three others make
// transfers that outlive their server, while three successors take over.
func TestTakeoversUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	d := dir(t)
	args := []string{"--drain-timeout", (5 * patience).String(), "--chunk", "65536"}
	server := serveTakeover(t, d, args...)
	var (
		clients sync.WaitGroup
		over    atomic.Bool
		echoes  atomic.Int64
	)
	for i := range 48 {
		clients.Go(func() {
			for n := 0; !over.Load(); n++ {
				if err := exchange(d, i%3, fmt.Sprintf("client %d, message %d", i, n), time.Now().Add(patience)); err != nil {
					t.Error(err)
					return
				}
				echoes.Add(1)
			}
		})
	}
	var transfers []*process
	sent := make([]bytes.Buffer, len(places))
	for i, a := range places {
		p := start(t, d, "client", "--log-level", "warn", "--connect", a, "--chunk", "1000", "-")
		transfers = append(transfers, p)
		clients.Go(func() {
			random := rand.NewChaCha8([32]byte{byte(i)})
			for block := make([]byte, 10_000); !over.Load(); {
				_, _ = random.Read(block)
				sent[i].Write(block)
				if _, err := p.In.Write(block); err != nil {
					t.Error(err)
					break
				}
			}
			_ = p.In.Close()
		})
	}
	for range 3 {
		seen := echoes.Load()
		next := serveTakeover(t, d, args...)
		next.Err.Await(t, 3, "took over ")
		testkit.Await(t, func() error {
			if echoes.Load() < seen+100 && !t.Failed() {
				return errors.New("nothing is echoed any more")
			}
			return nil
		})
		defer func(old *process) { old.WantStatus(t, 0) }(server)
		server = next
	}
	over.Store(true)
	for _, p := range transfers {
		p.WantStatus(t, 0)
	}
	clients.Wait()
	for i, p := range transfers {
		if p.Out.String() != sent[i].String() {
			t.Errorf("%q: received %d of %d bytes, or others", p.Cmd.Args, len(p.Out.String()), sent[i].Len())
		}
	}
	server.Stop(t)
	t.Logf("%d exchanges, none refused, no byte lost", echoes.Load())
}

// exchange sends one message over a connection of its own.
func exchange(d string, kind int, text string, deadline time.Time) error {
	network, name := []string{"unix", "unixpacket", "unixgram"}[kind], []string{"s", "q", "d"}[kind]
	var own *net.UnixAddr
	if network == "unixgram" {
		own = &net.UnixAddr{Name: fmt.Sprintf("@%s %d %d", filepath.Base(d), rand.Uint64(), rand.Uint64()), Net: network}
	}
	conn, err := net.DialUnix(network, own, &net.UnixAddr{Name: d + "/" + name, Net: network})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return fmt.Errorf("send to %s: %w", name, err)
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil {
		return fmt.Errorf("receive from %s: %w", name, err)
	}
	if string(back) != text {
		return fmt.Errorf("%s: sent %q, got back %q", name, text, back)
	}
	return nil
}

// SIGTERM arrives at some moment of a handover. Either one server is left and
// serves, or none is left.
func TestSignalsDuringTakeover(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serveTakeover(t, d)
	for i := range 20 {
		next := start(t, d, "server", "--takeover", "--log-format", "plain", "--listen", strings.Join(places, ","))
		next.Err.Await(t, 1, "starting up on ")
		if i%2 == 0 {
			if err := server.Cmd.Process.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) { // it may have handed over already
				check(t, err)
			}
			server.WantStatus(t, 0)
			next.Err.Await(t, 3, "took over ")
			wantAllEcho(t, d)
			server = next
			continue
		}
		next.Signal(t, syscall.SIGTERM)
		next.WantStatus(t, 0)
		if !strings.Contains(next.Err.String(), "took over ") && !yielded(server, d) {
			wantAllEcho(t, d) // it came too early to change anything
			continue
		}
		server.WantStatus(t, 0)
		wantFiles(t, d)
		server = serveTakeover(t, d)
	}
	server.Stop(t)
}
