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

// overtake starts a successor and waits until it serves and old has ended.
func overtake(t *testing.T, old *process, args ...string) *process {
	t.Helper()
	next := serveTakeover(t, old.Cmd.Dir, args...)
	next.Err.Await(t, 3, "took over ")
	if status := old.Status(t); status != 0 {
		t.Errorf("the old server's exit status is %d:\n%s", status, &old.Err)
	}
	return next
}

func wantAllEcho(t *testing.T, d string) {
	t.Helper()
	for _, a := range places {
		if status, stdout, stderr := run(t, d, "", "client", "--connect", a); status != 0 || stdout != message {
			t.Errorf("%s: exit status %d, output %q, error %q", a, status, stdout, stderr)
		}
	}
}

// 50 clients of all types connect, get an echo and close, or make long
// transfers that outlive their server, while three successors take over.
func TestTakeoversUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	d := dir(t)
	args := []string{"--drain-timeout", "60s", "--chunk", "65536"}
	server := serveTakeover(t, d, args...)
	var (
		clients sync.WaitGroup
		over    = make(chan struct{})
		echoes  atomic.Int64
	)
	for i := range 50 {
		long := i < 10
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				var err error
				switch {
				case long:
					err = longTransfer(d+"/s", uint64(i))
				default:
					err = shortExchange(d, i%3, fmt.Sprintf("client %d, message %d", i, n))
				}
				if err != nil {
					t.Errorf("client %d, time %d: %v", i, n, err)
					return
				}
				echoes.Add(1)
			}
		})
	}
	// Processes of our own client too, which transfer as long as the test
	// runs.
	var processes []*process
	for _, a := range places {
		args := []string{"client", "--log-level", "warn", "--connect", a, "-"}
		if a != places[0] {
			args = append(args, "--chunk", "1000")
		}
		processes = append(processes, start(t, d, args...))
	}
	sent := make([]bytes.Buffer, len(processes))
	feed := func() {
		for i, p := range processes {
			block := make([]byte, 100_000)
			_, _ = rand.NewChaCha8([32]byte{byte(i), byte(sent[i].Len() / len(block))}).Read(block)
			sent[i].Write(block)
			_, err := p.In.Write(block)
			check(t, err)
		}
	}
	feed()
	for range 3 {
		seen := echoes.Load()
		next := serveTakeover(t, d, args...)
		next.Err.Await(t, 3, "took over ")
		feed()
		testkit.Await(t, func() error {
			if echoes.Load() < seen+100 {
				return errors.New("nothing is echoed any more")
			}
			return nil
		})
		defer func(old *process) {
			if status := old.Status(t); status != 0 {
				t.Errorf("an old server's exit status is %d:\n%s", status, &old.Err)
			}
		}(server)
		server = next
	}
	close(over)
	clients.Wait()
	for i, p := range processes {
		check(t, p.In.Close())
		if status := p.Status(t); status != 0 || p.Out.String() != sent[i].String() {
			t.Errorf("%v: exit status %d, received %d of %d bytes, error %q", p.Cmd.Args, status, len(p.Out.String()), sent[i].Len(), &p.Err)
		}
	}
	if status := server.Terminate(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
	wantFiles(t, d)
	t.Logf("%d exchanges, none refused, no byte lost", echoes.Load())
}

// longTransfer sends 4 MiB over one connection and compares the echo.
func longTransfer(path string, seed uint64) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(3 * patience)); err != nil {
		return err
	}
	sent := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(sent)
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- errors.Join(err, conn.(*net.UnixConn).CloseWrite())
	}()
	back, err := io.ReadAll(conn)
	if err := errors.Join(err, <-failed); err != nil {
		return err
	}
	if !bytes.Equal(back, sent) {
		return fmt.Errorf("received %d of %d bytes", len(back), len(sent))
	}
	return nil
}

// shortExchange sends one message over a connection of its own.
func shortExchange(d string, kind int, text string) error {
	return exchange(d, kind, text, time.Now().Add(3*patience))
}

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
	for range 10 {
		next := start(t, d, "server", "--takeover", "--log-format", "plain", "--listen", places[0], "--listen", places[1], "--listen", places[2])
		next.Err.Await(t, 1, "starting up on ")
		if err := server.Cmd.Process.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) { // it may have handed over already
			check(t, err)
		}
		if status := server.Status(t); status != 0 {
			t.Errorf("the old server's exit status is %d:\n%s", status, &server.Err)
		}
		next.Err.Await(t, 3, "took over ")
		wantAllEcho(t, d)
		server = next
	}
	for range 10 {
		next := start(t, d, "server", "--takeover", "--log-format", "plain", "--listen", places[0], "--listen", places[1], "--listen", places[2])
		next.Err.Await(t, 1, "starting up on ")
		if status := next.Terminate(t); status != 0 {
			t.Errorf("the new server's exit status is %d:\n%s", status, &next.Err)
		}
		if !strings.Contains(next.Err.String(), "took over ") && !yielded(server, d) {
			wantAllEcho(t, d) // it came too early to change anything
			continue
		}
		if status := server.Status(t); status != 0 {
			t.Errorf("the old server's exit status is %d:\n%s", status, &server.Err)
		}
		wantFiles(t, d)
		server = serveTakeover(t, d)
	}
	server.Stop(t)
}
