package main_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// logInto starts a program whose log goes into a pipe that is full as soon as
// possible, and waits until it listens at s.
func logInto(t *testing.T, d string, args ...string) (p *process, reader *os.File) {
	t.Helper()
	p = testkit.Prepare(t, d, args...)
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() { _ = r.Close() })
	_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	check(t, err)
	p.Cmd.Stderr = w
	p.Start(t)
	check(t, w.Close())
	testkit.Await(t, func() error { _, err := os.Lstat(d + "/s"); return err })
	return p, r
}

var droppedLines = regexp.MustCompile(`([0-9]+) log lines dropped`)

// A program with an event loop never waits for the reader of its log.
func TestF54LogReaderThatStandsStillOrEnds(t *testing.T) {
	t.Parallel()
	target := dir(t)
	serve(t, target, "--listen", target+"/t")
	programs := [][]string{
		{"server", "--admin", "a"},
		{"client", "forward", "--connect", target + "/t"},
	}
	cases, dropped := 0, 0
	for i, program := range programs {
		works := func(d string) {
			t.Helper()
			if status, stdout, stderr := run(t, d, "", "client", "--retry", patience.String(), "--connect", "s"); status != 0 || stdout != message {
				t.Fatalf("%v: the client's exit status is %d, its output %q, its error %q", program, status, stdout, stderr)
			}
			if status, _, stderr := run(t, d, "", program[0], "healthcheck", "--listen", "s", "--timeout", patience.String()); status != 0 {
				t.Fatalf("%v: health check: %s", program, stderr)
			}
		}
		// fill makes more lines than the pipe and the program have room for.
		fill := func(d string) {
			t.Helper()
			n := 200_000
			if i == 0 {
				status, stdout, stderr := run(t, d, strings.Repeat("x", n), "client", "--log-level", "error", "--connect", "s", "-")
				if status != 0 || len(stdout) != n {
					t.Fatalf("%v: the client's exit status is %d, its error %q", program, status, stderr)
				}
			}
			works(d)
		}
		args := append(slices.Clone(program), "--listen", "s", "--log-level", "debug", "--drain-timeout", "60s")
		// The reader stands still, and then reads on.
		d := dir(t)
		p, r := logInto(t, d, args...)
		fill(d)
		if i == 0 && statusOf(t, d+"/a").LogLinesDropped == 0 {
			// The ring holds thousands of lines, of which most are here.
			t.Errorf("no dropped line is counted")
		}
		var text testkit.Text
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(&text, r)
			read <- err
		}()
		if i == 0 {
			text.Await(t, 1, "log lines dropped")
		}
		works(d)
		text.Await(t, 1, "no data from")
		if i == 0 {
			want := statusOf(t, d+"/a").LogLinesDropped
			for _, m := range droppedLines.FindAllStringSubmatch(text.String(), -1) {
				n, err := strconv.Atoi(m[1])
				check(t, err)
				dropped += n
			}
			if dropped != want {
				t.Errorf("the log reports %d dropped lines, the status %d", dropped, want)
			}
		}
		p.Stop(t)
		check(t, <-read)
		// It stands still until the end.
		d = dir(t)
		p, _ = logInto(t, d, args...)
		fill(d)
		p.Stop(t)
		// A second signal ends the program even then.
		d = dir(t)
		p, _ = logInto(t, d, args...)
		fill(d)
		held, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Connect(held, &unix.SockaddrUnix{Name: d + "/s"}))
		works(d) // so that held is accepted
		p.Signal(t, syscall.SIGTERM)
		testkit.Await(t, func() error { // it drains
			if _, err := os.Lstat(d + "/s"); err == nil {
				return errors.New("the socket is still there")
			}
			return nil
		})
		p.Signal(t, syscall.SIGTERM)
		if status := p.Status(t); status != -1 {
			t.Errorf("%v: exit status %d", program, status)
		}
		check(t, unix.Close(held))
		// It ends.
		d = dir(t)
		p, r = logInto(t, d, args...)
		check(t, r.Close())
		fill(d)
		p.Stop(t)
		// The program fails, and cannot say why.
		d = dir(t)
		p = testkit.Prepare(t, d, append(program, "--listen", "none/s")...)
		r, w, err := os.Pipe()
		check(t, err)
		fd := int(w.Fd())
		check(t, unix.SetNonblock(fd, true))
		for err == nil {
			_, err = unix.Write(fd, make([]byte, os.Getpagesize()))
		}
		check(t, unix.SetNonblock(fd, false))
		p.Cmd.Stderr = w
		p.Start(t)
		check(t, w.Close())
		if status := p.Status(t); status != 1 {
			t.Errorf("%v: exit status %d", program, status)
		}
		check(t, r.Close())
		cases += 5
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F54", Done: "the log of the server and of a relay goes into a full pipe that is not read, read again later, or closed; they get SIGTERM, twice, or fail", Count: cases,
		Outcome: fmt.Sprintf("clients and health checks are served as ever; %d lines dropped, counted and reported; each program ends with its exit status and removes its files", dropped),
	})
}
