package main_test

import (
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
	testkit.Main(m, ".", "../server", "../cmd/uds")
}

var (
	check     = testkit.Check
	dir       = testkit.Dir
	start     = testkit.Start
	wantWords = testkit.WantWords
)

func TestScripts(t *testing.T) { testkit.Scripts(t, "testdata/script") }
