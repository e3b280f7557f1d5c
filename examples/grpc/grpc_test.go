package grpc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/udsecho/udsecho/examples/grpc/unixgrpc"
	"github.com/udsecho/udsecho/examples/grpc/whoami"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds"
)

func TestMain(m *testing.M) { testkit.Main(m, "./server", "./client") }

var check = testkit.Check

// serve starts the server at d/s and waits until it serves the test's own user.
func serve(t *testing.T, d, name string) *testkit.Process {
	t.Helper()
	return serving(t, testkit.Prepare(t, d, "server", "-listen", "s", "-name", name, "-limit", "1m", "-permit", fmt.Sprint(os.Getuid())))
}

func serving(t *testing.T, p *testkit.Process) *testkit.Process {
	t.Helper()
	p.Start(t)
	p.Err.Await(t, 1, "serves")
	return p
}

// dial connects to d/s. A failed connection is tried again at once.
func dial(t *testing.T, d string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+d+"/s", append(options, unixgrpc.Require(os.Getuid()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Millisecond, MaxDelay: time.Millisecond},
			MinConnectTimeout: testkit.Patience,
		}))...)
	if err != nil {
		t.Error(err)
	}
	return conn
}

func ask(conn *grpc.ClientConn, options ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	return whoami.Ask(ctx, conn, options...)
}

func TestKernelSaysWhoCalls(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to be other users")
	d := testkit.Dir(t)
	check(t, os.Chown(d, 10001, 10000))
	as := func(uid, gid uint32, args ...string) *testkit.Process {
		p := testkit.Prepare(t, d, args...)
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
		return p
	}
	server := serving(t, as(10001, 10000, "server", "-listen", "s", "-name", "a", "-permit", "10001", "-permit", "10002"))
	for name, c := range map[string]struct {
		uid, gid uint32
		args     string
		status   int
		words    string
	}{
		"permitted":            {10002, 10000, "", 0, "uid 10002, gid 10000; served by a\n"},
		"own health check":     {10001, 10000, "health", 0, ""},
		"another user":         {10003, 10000, "", 1, "PermissionDenied desc = uid 10003 is not permitted"},
		"another user, health": {10003, 10000, "health", 1, "PermissionDenied desc = uid 10003 is not permitted"},
		"another group":        {10002, 10002, "health", 1, "connect: permission denied"},
		"another server":       {10002, 10000, "-require 10009 health", 1, "the server runs as uid 10001, not as one of [10009]"},
	} {
		t.Run(name, func(t *testing.T) {
			p := as(c.uid, c.gid, append([]string{"client", "-connect", d + "/s"}, strings.Fields(c.args)...)...)
			p.Start(t)
			p.WantStatus(t, c.status)
			testkit.WantWords(t, p.Out.String()+p.Err.String(), c.words)
		})
	}
	server.Stop(t)
}

func TestHealthCheckDoesNotWaitForAServer(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	status, _, stderr := testkit.Run(t, d, "", "client", "-connect", d+"/s", "-timeout", "1m", "health")
	if status != 1 {
		t.Errorf("status %d", status)
	}
	testkit.WantWords(t, stderr, "Unavailable", "connect: no such file or directory")
}

// A handler is a server whose handler waits.
type handler struct{ began, release chan struct{} }

func (h handler) Ask(ctx context.Context, _ *emptypb.Empty) (*wrapperspb.StringValue, error) {
	close(h.began)
	<-h.release
	md, _ := metadata.FromIncomingContext(ctx)
	return wrapperspb.String(md[":authority"][0]), nil
}

// within serves at d/s, and returns what ends this, and how it ended.
func within(t *testing.T, d string, limit time.Duration) (h handler, stop func(), ended <-chan error) {
	t.Helper()
	l, err := uds.Listen("unix", d+"/s")
	check(t, err)
	h = handler{make(chan struct{}), make(chan struct{})}
	server := grpc.NewServer(unixgrpc.Permit(os.Getuid())...)
	whoami.Register(server, h)
	ctx, stop := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- unixgrpc.Serve(ctx, server, l, limit) }()
	t.Cleanup(server.Stop)
	return h, stop, end
}

// call makes a call, whose answer comes later, and returns when the handler has it.
func (h handler) call(t *testing.T, conn *grpc.ClientConn) <-chan string {
	t.Helper()
	answered := make(chan string, 1)
	go func() {
		answer, err := ask(conn)
		answered <- fmt.Sprint(answer, err)
	}()
	select {
	case <-h.began:
	case answer := <-answered:
		t.Fatal(answer)
	}
	return answered
}

func TestCallInFlightIsAnsweredAtTheEnd(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	h, stop, ended := within(t, d, testkit.Patience)
	conn := dial(t, d)
	defer func() { _ = conn.Close() }()
	answer := h.call(t, conn)
	stop()
	testkit.Await(t, func() error {
		if _, err := os.Stat(d + "/s"); !errors.Is(err, os.ErrNotExist) {
			return errors.New("the server still listens")
		}
		return nil
	})
	close(h.release)
	// The authority is what this client sends for every path.
	if got := <-answer; got != "localhost<nil>" {
		t.Error(got)
	}
	check(t, <-ended)
}

func TestEndHasALimit(t *testing.T) {
	t.Parallel()
	t.Run("call", func(t *testing.T) {
		d := testkit.Dir(t)
		h, stop, ended := within(t, d, 0)
		conn := dial(t, d)
		defer func() { _ = conn.Close() }()
		answer := h.call(t, conn)
		stop()
		testkit.WantError(t, <-ended, "there are still calls after 0s")
		close(h.release)
		<-answer
	})
	// gRPC itself waits 2 minutes for it.
	t.Run("silent connection", func(t *testing.T) {
		d := testkit.Dir(t)
		_, stop, ended := within(t, d, 0)
		conn, err := uds.Dial("unix", d+"/s")
		check(t, err)
		_, err = conn.Read(make([]byte, 1)) // the server's first frame: it has accepted
		check(t, err)
		stop()
		testkit.WantError(t, <-ended, "there are still calls after 0s")
		check(t, conn.Close())
	})
}

// Without a server a call fails at once, or it waits for one.
func TestWaitForReadyWaitsForAServer(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	conn := dial(t, d)
	defer func() { _ = conn.Close() }()
	if _, err := ask(conn); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	answer := make(chan error)
	go func() {
		_, err := ask(conn, grpc.WaitForReady(true))
		answer <- err
	}()
	server := serve(t, d, "a")
	check(t, <-answer)
	server.Stop(t)
}

// again repeats a call that was lost with its server, as a client may if the call
// can be executed twice. gRPC does not repeat it once the header of the answer has
// come (gRFC A6).
const again = `{"methodConfig": [{"name": [{}], "waitForReady": true, "retryPolicy": {
	"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "1s", "backoffMultiplier": 2,
	"retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func TestReplacementUnderLoadFailsNoCall(t *testing.T) {
	t.Parallel()
	// Each replaces the server by the next one.
	takeover := func(t *testing.T, old *testkit.Process, next func() *testkit.Process) *testkit.Process {
		p := next()
		old.WantStatus(t, 0)
		return p
	}
	restart := func(t *testing.T, old *testkit.Process, next func() *testkit.Process) *testkit.Process {
		old.Stop(t)
		return next()
	}
	kill := func(t *testing.T, old *testkit.Process, next func() *testkit.Process) *testkit.Process {
		old.Signal(t, syscall.SIGKILL)
		old.WantStatus(t, -1)
		return next()
	}
	waiting := grpc.WithDefaultCallOptions(grpc.WaitForReady(true))
	for name, c := range map[string]struct {
		replace      func(*testing.T, *testkit.Process, func() *testkit.Process) *testkit.Process
		replacements int
		calls        int // of each server, before it is replaced
		fresh        bool
		lost         string // which calls may fail
		options      []grpc.DialOption
	}{
		"takeover":                        {takeover, testkit.Count(3, 100), 240, false, "none", nil},
		"takeover, a connection each":     {takeover, testkit.Count(3, 100), 240, true, "none", nil},
		"restart, waiting":                {restart, testkit.Count(2, 30), 240, false, "none", []grpc.DialOption{waiting}},
		"kill, waiting":                   {kill, testkit.Count(2, 30), 240, false, "in flight", []grpc.DialOption{waiting}},
		"kill, waiting and calling again": {kill, testkit.Count(2, 30), 2400, false, "half answered", []grpc.DialOption{grpc.WithDefaultServiceConfig(again)}},
	} {
		t.Run(name, func(t *testing.T) {
			d := testkit.Dir(t)
			var mu sync.Mutex
			calls, failed, answers := 0, 0, map[string]int{}
			served := make(chan struct{}, c.replacements+1) // when a server has answered enough
			call := func(conn *grpc.ClientConn) {
				var header metadata.MD
				answer, err := ask(conn, grpc.Header(&header))
				lost := status.Code(err) == codes.Unavailable && (c.lost == "in flight" || c.lost == "half answered" && len(header) > 0)
				if err != nil && !lost {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if calls++; err != nil {
					failed++
				} else if answers[answer]++; answers[answer] == c.calls {
					served <- struct{}{}
				}
			}
			servers := 0
			next := func() *testkit.Process {
				servers++
				return serve(t, d, fmt.Sprint(servers))
			}
			server := next()
			over := make(chan struct{})
			var clients sync.WaitGroup
			for range 24 {
				clients.Go(func() {
					conn := dial(t, d, c.options...)
					defer func() { _ = conn.Close() }()
					for {
						select {
						case <-over:
							return
						default:
						}
						if c.fresh {
							_ = conn.Close()
							conn = dial(t, d, c.options...)
						}
						call(conn)
					}
				})
			}
			for range c.replacements {
				<-served
				server = c.replace(t, server, next)
			}
			<-served
			close(over)
			clients.Wait()
			server.Stop(t)
			t.Logf("%d replacements, %d calls, %d failed", c.replacements, calls, failed)
		})
	}
}
