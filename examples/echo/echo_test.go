package echo_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

// The programs of the stack are "server" and "client" here.
func TestMain(m *testing.M) { testkit.Main(m, "../../server", "../../client") }

const (
	message = "This is the message.  It will be repeated."
	waiting = "waiting for a connection\n"

	serverWrites = `starting up on ./uds_socket
waiting for a connection
connection from
received 'This is the mess'
sending data back to the client
received 'age.  It will be'
sending data back to the client
received ' repeated.'
sending data back to the client
received ''
no data from
waiting for a connection
`
	clientWrites = `connecting to ./uds_socket
sending 'This is the message.  It will be repeated.'
received 'This is the mess'
received 'age.  It will be'
received ' repeated.'
closing socket
`
)

var build = sync.OnceValue(func() error { return testkit.Build("small", "./server", "./client") })

// small returns the path of the small server or the small client.
func small(t *testing.T, program string) string {
	t.Helper()
	testkit.Check(t, build())
	return testkit.Program("small/" + program)
}

// start starts a server in d, and waits until it serves.
func start(t *testing.T, d string, args ...string) *testkit.Process {
	t.Helper()
	server := testkit.Start(t, d, args...)
	testkit.Await(t, func() error {
		conn, err := net.Dial("unix", d+"/uds_socket")
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	return server
}

// startSmall starts the small server in d, and waits until it serves.
func startSmall(t *testing.T, d string) *testkit.Process {
	t.Helper()
	server := testkit.Start(t, d, small(t, "server"))
	server.Out.Await(t, 1, waiting)
	return server
}

// python returns the command that runs a program in Python, from its path here.
func python(t *testing.T, program string, args ...string) []string {
	t.Helper()
	testkit.Need(t, "python3", "python3")
	path, err := filepath.Abs(program)
	testkit.Check(t, err)
	return append([]string{"python3", path}, args...)
}

func wantOutput(t *testing.T, p *testkit.Process, want string) {
	t.Helper()
	if got := p.Out.String() + p.Err.String(); got != want {
		t.Errorf("%q wrote\n%s", p.Cmd.Args, got)
	}
}

func TestClientsOfTheSmallServer(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]func(t *testing.T) (args []string, out string){
		"small": func(t *testing.T) ([]string, string) { return []string{small(t, "client")}, clientWrites },
		"stack": func(*testing.T) ([]string, string) {
			return []string{"client", "--log-level", "error"}, message
		},
		"Python": func(t *testing.T) ([]string, string) {
			return python(t, "../languages/echo.py", "uds_socket", message), message
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args, out := client(t)
			d := testkit.Dir(t)
			server := startSmall(t, d)
			p := testkit.Start(t, d, args...)
			p.WantStatus(t, 0)
			wantOutput(t, p, out)
			server.Out.Await(t, 2, waiting)
			server.Stop(t)
			wantOutput(t, server, serverWrites)
		})
	}
}

func TestServersOfTheSmallClient(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]func(t *testing.T) []string{
		"stack":  func(*testing.T) []string { return []string{"server"} },
		"Python": func(t *testing.T) []string { return python(t, "../../bench/peers/source.py", "uds_socket") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := server(t)
			d := testkit.Dir(t)
			started := start(t, d, args...)
			client := testkit.Start(t, d, small(t, "client"))
			client.WantStatus(t, 0)
			wantOutput(t, client, clientWrites)
			started.Terminate(t)
		})
	}
}

func TestSignalEndsTheSmallServer(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, with a client: %v", signal, busy), func(t *testing.T) {
				t.Parallel()
				d := testkit.Dir(t)
				server := startSmall(t, d)
				if busy {
					client, err := net.Dial("unix", d+"/uds_socket")
					testkit.Check(t, err)
					defer func() { _ = client.Close() }()
					server.Out.Await(t, 1, "connection from\n")
				}
				server.Signal(t, signal)
				server.WantStatus(t, 0)
				testkit.WantFiles(t, d)
				if errs := server.Err.String(); errs != "" {
					t.Error(errs)
				}
			})
		}
	}
}

func TestSmallServerReplacesAStaleFileOnly(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	killed := startSmall(t, d)
	second := testkit.Start(t, d, small(t, "server"))
	second.WantStatus(t, 1)
	testkit.WantWords(t, second.Err.String(), "./uds_socket", "in use")
	killed.Signal(t, syscall.SIGKILL)
	<-killed.Ended
	if _, err := os.Lstat(d + "/uds_socket"); err != nil {
		t.Error(err)
	}
	startSmall(t, d).Stop(t)
}

// A client that breaks off ends neither the server nor the next client's echo,
// and its bytes cannot control a terminal.
func TestSmallServerOutlivesItsClients(t *testing.T) {
	t.Parallel()
	d := testkit.Dir(t)
	server := startSmall(t, d)
	rude, err := net.Dial("unix", d+"/uds_socket")
	testkit.Check(t, err)
	_, err = rude.Write([]byte("\x1b[2J\n"))
	testkit.Check(t, err)
	server.Out.Await(t, 1, `received '\x1b[2J\n'`)
	server.Out.Await(t, 1, "sending data back to the client\n")
	testkit.Check(t, rude.Close()) // with the echo unread: the server's next read fails
	server.Out.Await(t, 2, waiting)
	testkit.Start(t, d, small(t, "client")).WantStatus(t, 0)
	server.Stop(t)
}
