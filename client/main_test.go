package main_test

import (
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) {
	// nohup make test: a signal that is ignored would stay so in the programs,
	// one that is handled is not, execve(2).
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	testkit.Main(m, ".")
}

var (
	check     = testkit.Check
	dir       = testkit.Dir
	need      = testkit.Need
	start     = testkit.Start
	wantFiles = testkit.WantFiles
	wantWords = testkit.WantWords
)

// run runs the client to its end.
func run(t *testing.T, d, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return testkit.Run(t, d, stdin, append([]string{"client"}, args...)...)
}

// listen returns a server's socket in a new directory with a short path.
func listen(t *testing.T) (d string, l net.Listener) {
	t.Helper()
	d = dir(t)
	l, err := net.Listen("unix", d+"/uds_socket")
	check(t, err)
	t.Cleanup(func() { check(t, l.Close()) })
	return d, l
}
