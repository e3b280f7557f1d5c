//go:build linux && !uds_portable

package uds_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds"
	"github.com/udsecho/udsecho/uds/sock"
)

// patience is the longest wait for an event; it measures nothing.
const patience = time.Minute

// A child is this test binary again, with a role.
const roleVar = "UDS_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := roles[role](os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var takeover = uds.ListenConfig{Takeover: true}

var roles = map[string]func(path string) error{
	// serve takes over at the cue, and answers each client with its process id.
	"serve": func(path string) error {
		_, _ = fmt.Scanln()
		l, err := takeover.Listen(context.Background(), "unix", path)
		if err != nil {
			return err
		}
		fmt.Println("serves")
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_, _ = fmt.Fprint(c, os.Getpid())
			_ = c.Close()
		}
	},
}

type child struct {
	cmd *exec.Cmd
	cue io.WriteCloser
	out *bufio.Scanner
}

func start(t *testing.T, role, path string) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", path)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	cue, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &child{cmd, cue, bufio.NewScanner(out)}
}

func (c *child) wantLine(t *testing.T, want string) {
	t.Helper()
	if !c.out.Scan() || c.out.Text() != want {
		t.Fatalf("the child prints %q, not %q", c.out.Text(), want)
	}
}

// successor asks for the socket of a listener, and can then be led step by
// step.
func successor(t *testing.T, l net.Listener) *sock.Handover {
	t.Helper()
	typ := map[string]sock.Type{"unix": sock.Stream, "unixpacket": sock.Seqpacket}[l.Addr().Network()]
	h, err := sock.ListenConfig{}.Handover(t.Context(), sock.Addr{Type: typ, Path: l.Addr().String()})
	check(t, err)
	if h.State() != sock.Claiming {
		t.Fatal("there is no server that hands over")
	}
	return h
}

func wait(t *testing.T, h *sock.Handover) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check(t, sock.Wait(ctx, h.FD()))
}

func answer(t *testing.T, address string) string {
	t.Helper()
	c, err := uds.Dial("unix", address)
	check(t, err)
	defer func() { _ = c.Close() }()
	got, err := io.ReadAll(c)
	check(t, err)
	return string(got)
}

// accept accepts in the background, answers with a name, and reports why it
// has ended.
func accept(l net.Listener, name string) (ended chan error) {
	ended = make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, unix.EMFILE) { // accept(2) returns it even if no connection waits
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				ended <- err
				return
			}
			_, _ = io.WriteString(c, name)
			_ = c.Close()
		}
	}()
	return ended
}

func wantClosed(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if op, ok := err.(*net.OpError); !ok || op.Op != "accept" || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Fatal("Accept does not end")
	}
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	for _, network := range connected {
		d := dir(t)
		old := listen(t, takeover, network, d+"/s")
		waiting, err := uds.Dial(network, d+"/s") // the old server has not accepted it
		check(t, err)
		l := listen(t, takeover, network, d+"/s")
		wantClosed(t, accept(old, "old"))
		c, err := l.Accept()
		check(t, err)
		check(t, c.Close())
		check(t, waiting.Close())
		check(t, old.Close())
		c, err = uds.Dial(network, d+"/s")
		check(t, err)
		check(t, c.Close())
		check(t, l.Close())
		wantEmpty(t, d)
	}
}

func TestContextEndsTheWaitForTheRunningServer(t *testing.T) {
	t.Parallel()
	d := dir(t)
	// A server that is stopped: nobody takes its steps.
	h, err := sock.ListenConfig{}.Handover(t.Context(), sock.Addr{Type: sock.Stream, Path: d + "/s"})
	check(t, err)
	defer func() {
		h.Leave()
		check(t, h.Sockets[0].Close())
		h.Close()
	}()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = takeover.Listen(ended, "unix", d+"/s")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = takeover.Listen(short, "unix", d+"/s")
	var timeout net.Error
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v", err)
	}
	wantOp(t, err, "listen", d+"/s")

	// It has offered the socket, and does not yield it.
	asked := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := takeover.Listen(ctx, "unix", d+"/s")
		asked <- err
	}()
	for h.State() != sock.Yielding {
		wait(t, h)
		_, _ = h.Step() // those that have given up are in the queue
	}
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// The application has not closed the old listener when the new server dies.
func TestOldListenerKeepsNoCopy(t *testing.T) {
	t.Parallel()
	d := dir(t)
	old := listen(t, takeover, "unix", d+"/s")
	ended := accept(old, "old")
	next := start(t, "serve", d+"/s")
	check(t, next.cue.Close())
	next.wantLine(t, "serves")
	wantClosed(t, ended)
	if got := answer(t, d+"/s"); got != fmt.Sprint(next.cmd.Process.Pid) {
		t.Errorf("%s answers", got)
	}
	check(t, next.cmd.Process.Kill())
	_ = next.cmd.Wait()
	if c, err := uds.Dial("unix", d+"/s"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, %v: some process listens", c, err)
	}
	third := listen(t, takeover, "unix", d+"/s")
	check(t, old.Close())
	accept(third, "third")
	if got := answer(t, d+"/s"); got != "third" {
		t.Errorf("%s answers", got)
	}
	check(t, third.Close())
	wantEmpty(t, d)
}

func TestCloseDuringAHandover(t *testing.T) {
	t.Parallel()
	for _, owns := range []bool{false, true} {
		d := dir(t)
		old := listen(t, takeover, "unix", d+"/s")
		next := successor(t, old)
		if owns {
			next.Claim()
			wait(t, next) // for its yield
		}
		check(t, old.Close())
		next.Claim()
		wait(t, next)
		if !owns {
			if _, err := next.Step(); !errors.Is(err, uds.ErrInUse) {
				t.Errorf("it is claimed from a listener that was closed: %v", err)
			}
			next.Close()
			wantEmpty(t, d)
			continue
		}
		if state, err := next.Step(); err != nil || state != sock.Claimed {
			t.Fatalf("the state is %d, %v", state, err)
		}
		next.Commit()
		c, err := uds.Dial("unix", d+"/s")
		check(t, err)
		check(t, c.Close())
		next.Leave()
		check(t, next.Sockets[0].Close())
		next.Close()
		wantEmpty(t, d)
	}
}

// One listener after the other in one process, each closed at a random moment
// of the next one's takeover, as programs do that start their new half first.
func TestClientsDuringTakeoversInOneProcess(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	l := listen(t, takeover, "unix", path)
	accept(l, "x")
	var clients sync.WaitGroup
	var over atomic.Bool
	var asked, failed atomic.Int64
	for range 4 {
		spawn(&clients, func() {
			for !over.Load() {
				asked.Add(1)
				c, err := uds.Dial("unix", path)
				if err == nil {
					var got []byte
					if got, err = io.ReadAll(c); err == nil && string(got) != "x" {
						err = fmt.Errorf("%q", got)
					}
					_ = c.Close()
				}
				if err != nil {
					failed.Add(1)
					t.Log(err)
				}
			}
		})
	}
	for range 30 {
		old := l
		l = listen(t, takeover, "unix", path)
		accept(l, "x")
		check(t, old.Close())
	}
	over.Store(true)
	clients.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d failed", failed.Load(), asked.Load())
	}
}

func TestSuccessorThatEndsGivesTheSocketBack(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, takeover, "unix", d+"/s")
	ended := accept(l, "still here")
	for _, claims := range []bool{false, true, true} {
		next := successor(t, l)
		if claims {
			next.Claim()
			wait(t, next)
		}
		next.Close()
		if got := answer(t, d+"/s"); got != "still here" {
			t.Errorf("%q", got)
		}
	}
	check(t, l.Close())
	wantClosed(t, ended)
	wantEmpty(t, d)
}

// While a successor may accept, the old server's Accept waits, with its
// deadline.
func TestDeadlineDuringAHandover(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, takeover, "unix", d+"/s")
	next := successor(t, l)
	next.Claim()
	wait(t, next)
	c, err := uds.Dial("unix", d+"/s")
	check(t, err)
	defer func() { _ = c.Close() }()
	check(t, l.SetDeadline(time.Now().Add(20*time.Millisecond)))
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	accepted := make(chan error, 1)
	check(t, l.SetDeadline(time.Time{}))
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	next.Close()
	check(t, <-accepted)
}

// Not parallel: it takes all descriptors from the process.
func TestLackOfDescriptorsDoesNotEndTheHandover(t *testing.T) {
	d := dir(t)
	l := listen(t, takeover, "unix", d+"/s")
	ended := accept(l, "old")
	next := start(t, "serve", d+"/s")
	var limit unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	check(t, next.cue.Close())
	// The child asks, and waits for five seconds at most. Nothing is judged by
	// this time; on a slow machine it may not have asked yet, that is all.
	time.Sleep(300 * time.Millisecond)
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	next.wantLine(t, "serves")
	wantClosed(t, ended)
}

func TestRenew(t *testing.T) {
	t.Parallel()
	for _, c := range []uds.ListenConfig{{Renew: true}, {Renew: true, Takeover: true}} {
		d := dir(t)
		attempts := make(chan error)
		ctx, done := context.WithCancel(t.Context())
		defer done()
		c.Renewed = func(err error) {
			select {
			case attempts <- err:
			case <-ctx.Done():
			}
		}
		l := listen(t, c, "unix", d+"/s")
		waiting, err := uds.Dial("unix", d+"/s")
		check(t, err)
		check(t, os.RemoveAll(d))
		if err := <-attempts; !errors.Is(err, unix.ENOENT) || strings.Contains(err.Error(), "stream:") {
			t.Errorf("without the directory: %v", err)
		}
		check(t, os.Mkdir(d, 0o700))
		for err = errors.New("not yet"); err != nil; {
			err = <-attempts
		}
		done()
		ended := accept(l, "renewed")
		got, err := io.ReadAll(waiting)
		if err != nil || string(got) != "renewed" {
			t.Errorf("the client from before reads %q, %v", got, err)
		}
		check(t, waiting.Close())
		if got := answer(t, d+"/s"); got != "renewed" {
			t.Errorf("%q", got)
		}
		if c.Takeover {
			next := listenWhenOffered(t, d)
			wantClosed(t, ended)
			check(t, next.Close())
		} else {
			check(t, l.Close())
			wantClosed(t, ended)
		}
		wantEmpty(t, d)
	}
}

// listenWhenOffered takes over once the control socket is there again.
func listenWhenOffered(t *testing.T, d string) net.Listener {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		l, err := takeover.Listen(t.Context(), "unix", d+"/s")
		if err == nil {
			return l
		}
		if time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

func TestRenewLeavesOtherFilesAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, uds.ListenConfig{Renew: true}, "unix", d+"/s")
	ended := accept(l, "x")
	check(t, os.WriteFile(d+"/other", []byte("precious"), 0o600))
	check(t, os.Rename(d+"/other", d+"/s"))
	if err := <-ended; !errors.Is(err, uds.ErrNotSocket) {
		t.Errorf("%v", err)
	}
	check(t, l.Close())
	if names := strings.Join(ls(t, d), " "); names != "s" {
		t.Errorf("%s", names)
	}
}

func TestSenderOfADatagram(t *testing.T) {
	t.Parallel()
	d := dir(t)
	p, err := uds.ListenPacket("unixgram", d+"/s")
	check(t, err)
	defer func() { check(t, p.Close()) }()
	c, err := uds.Dialer{Name: d + "/client"}.Dial("unixgram", d+"/s")
	check(t, err)
	defer func() { check(t, c.Close()) }()
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { check(t, null.Close()) }()
	check(t, uds.SendFiles(c, []byte("with a file"), null))
	_, err = c.Write([]byte("hello"))
	check(t, err)
	_, err = c.Write([]byte("too long"))
	check(t, err)
	buf := make([]byte, 100)
	for _, want := range []string{"with a file", "hello"} {
		n, from, cred, err := p.(*uds.PacketConn).ReadFromCred(buf)
		if err != nil || string(buf[:n]) != want || from.String() != d+"/client" || cred.UID != os.Geteuid() || cred.PID != os.Getpid() {
			t.Errorf("%q from %v %+v, %v", buf[:n], from, cred, err)
		}
	}
	n, from, _, err := p.(*uds.PacketConn).ReadFromCred(buf[:3])
	if !errors.Is(err, uds.ErrTruncated) || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
	_, err = p.WriteTo([]byte("answer"), from)
	check(t, err)
	n, err = c.Read(buf)
	if err != nil || string(buf[:n]) != "answer" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	for _, c := range []uds.ListenConfig{{Takeover: true}, {Renew: true}} {
		if _, err := c.ListenPacket(t.Context(), "unixgram", d+"/t"); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v", err)
		}
	}
}
