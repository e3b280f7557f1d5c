//go:build linux && !uds_portable

package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds"
	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

var takeover = uds.ListenConfig{Takeover: true}

func TestMain(m *testing.M) {
	testkit.Main(m, map[string]func([]string) (io.Closer, error){
		// serve PATH: takes over, and answers each client with its process id
		"serve": func(args []string) (io.Closer, error) {
			l, err := takeover.Listen(context.Background(), "unix", args[0])
			if err == nil {
				accept(l, fmt.Sprint(os.Getpid()))
			}
			return l, err
		},
	})
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
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	check(t, sock.Wait(ctx, h.FD()))
}

func wantAnswer(t *testing.T, address, want string) {
	t.Helper()
	c, err := uds.Dial("unix", address)
	check(t, err)
	defer func() { _ = c.Close() }()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Errorf("%q answers, not %q; %v", got, want, err)
	}
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
	case <-time.After(testkit.Patience):
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
		wantFiles(t, d)
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
	wantError(t, testkit.Err(takeover.Listen(ended, "unix", d+"/s")), context.Canceled)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = takeover.Listen(short, "unix", d+"/s")
	wantTimeout(t, err, context.DeadlineExceeded)
	wantOp(t, err, "listen", d+"/s")

	// It has offered the socket, and does not yield it.
	asked := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { asked <- testkit.Err(takeover.Listen(ctx, "unix", d+"/s")) }()
	for h.State() != sock.Yielding {
		wait(t, h)
		_, _ = h.Step() // those that have given up are in the queue
	}
	cancel()
	wantError(t, <-asked, context.Canceled)
}

// The application has not closed the old listener when the new server dies.
func TestOldListenerKeepsNoCopy(t *testing.T) {
	t.Parallel()
	d := dir(t)
	old := listen(t, takeover, "unix", d+"/s")
	ended := accept(old, "old")
	next := testkit.Start(t, 0, "serve", d+"/s")
	next.Do(t)
	wantClosed(t, ended)
	wantAnswer(t, d+"/s", fmt.Sprint(next.Cmd.Process.Pid))
	next.Kill(t)
	testkit.Await(t, func() error { // a child of another test may have a copy for a moment
		c, err := uds.Dial("unix", d+"/s")
		if err == nil {
			return errors.Join(errors.New("it is served"), c.Close())
		}
		return nil
	})
	wantError(t, testkit.Err(uds.Dial("unix", d+"/s")), unix.ECONNREFUSED)
	third := listen(t, takeover, "unix", d+"/s")
	check(t, old.Close())
	accept(third, "third")
	wantAnswer(t, d+"/s", "third")
	check(t, third.Close())
	wantFiles(t, d)
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
			wantError(t, testkit.Err(next.Step()), uds.ErrInUse)
			next.Close()
			wantFiles(t, d)
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
		wantFiles(t, d)
	}
}

// One listener after the other in one process, each closed at a random moment
// of the next one's takeover, as programs do that start their new half first.
func TestClientsDuringTakeoversInOneProcess(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	l := listen(t, takeover, "unix", path)
	accept(l, "x")
	var over atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		testkit.Go(4, func(int) {
			for !over.Load() {
				wantAnswer(t, path, "x")
			}
		})
	}()
	for range 30 {
		old := l
		l = listen(t, takeover, "unix", path)
		accept(l, "x")
		check(t, old.Close())
	}
	over.Store(true)
	<-ended
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
		wantAnswer(t, d+"/s", "still here")
	}
	check(t, l.Close())
	wantClosed(t, ended)
	wantFiles(t, d)
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
	wantError(t, testkit.Err(l.Accept()), os.ErrDeadlineExceeded)
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
	next := testkit.Start(t, 0, "serve", d+"/s")
	var limit unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	next.Cue(t)
	// The child asks, and waits for five seconds at most. Nothing is judged by
	// this time; on a slow machine it may not have asked yet, that is all.
	time.Sleep(300 * time.Millisecond)
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if got := next.Line(t); got != "ok" {
		t.Error(got)
	}
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
		wantAnswer(t, d+"/s", "renewed")
		if c.Takeover {
			testkit.Await(t, func() error { // until the control socket is there again
				next, err := takeover.Listen(t.Context(), "unix", d+"/s")
				if err == nil {
					check(t, next.Close())
				}
				return err
			})
		}
		check(t, l.Close())
		wantClosed(t, ended)
		wantFiles(t, d)
	}
}

func TestRenewLeavesOtherFilesAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, uds.ListenConfig{Renew: true}, "unix", d+"/s")
	ended := accept(l, "x")
	check(t, os.WriteFile(d+"/other", []byte("precious"), 0o600))
	check(t, os.Rename(d+"/other", d+"/s"))
	wantError(t, <-ended, uds.ErrNotSocket)
	check(t, l.Close())
	wantFiles(t, d, "s")
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
	check(t, uds.SendFiles(c, []byte("with a file"), os.Stdin))
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
		wantError(t, testkit.Err(c.ListenPacket(t.Context(), "unixgram", d+"/t")), errors.ErrUnsupported)
	}
}
