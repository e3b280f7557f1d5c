package main_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "crowd" {
		if err := crowd(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testkit.Main(m, ".", "../client")
}

const patience = testkit.Patience

type process = testkit.Process

var (
	check     = testkit.Check
	dir       = testkit.Dir
	need      = testkit.Need
	run       = testkit.Run
	start     = testkit.Start
	wantFiles = testkit.WantFiles
	wantWords = testkit.WantWords
)

// startAs starts a process of another user.
func startAs(t *testing.T, uid int, d string, args ...string) *process {
	t.Helper()
	testkit.NeedRoot(t, "to be another user")
	return startAttr(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}, d, args...)
}

func startAttr(t *testing.T, attr *syscall.SysProcAttr, d string, args ...string) *process {
	t.Helper()
	p := testkit.Prepare(t, d, args...)
	p.Cmd.SysProcAttr = attr
	p.Start(t)
	return p
}

// serve starts a server in d and waits until it serves.
func serve(t *testing.T, d string, args ...string) *process {
	t.Helper()
	return next(t, d, append([]string{"server"}, args...)...)
}
