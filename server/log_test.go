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
	cases, dropped := 0, 0
	for _, program := range [][]string{{"server", "--admin", "a"}, {"uds", "forward", "--connect", target + "/t"}} {
		args := append(slices.Clone(program), "--listen", "s", "--log-level", "debug", "--drain-timeout", "60s")
		echoes := program[0] == "server" // it logs much, and counts what it drops
		works := func(d string) {
			t.Helper()
			clientEchoes(t, d, "--retry", patience.String(), "--connect", "s")
			start(t, d, program[0], "healthcheck", "--listen", "s", "--timeout", patience.String()).WantStatus(t, 0)
		}
		// fill makes more lines than the pipe and the program have room for.
		fill := func(d string) {
			t.Helper()
			if much := strings.Repeat("x", 200_000); echoes {
				status, stdout, stderr := run(t, d, much, "client", "--log-level", "error", "--connect", "s", "-")
				if status != 0 || stdout != much {
					t.Errorf("%v: the client's exit status is %d, its error %q", program, status, stderr)
				}
			}
			works(d)
		}
		// The reader stands still, and then reads on.
		d := dir(t)
		p, r := logInto(t, d, args...)
		fill(d)
		if echoes && statusOf(t, d+"/a").LogLinesDropped == 0 {
			// The ring holds thousands of lines, of which most are here.
			t.Errorf("no dropped line is counted")
		}
		var text testkit.Text
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(&text, r)
			read <- err
		}()
		if echoes {
			text.Await(t, 1, "log lines dropped")
		}
		works(d)
		text.Await(t, 1, "no data from")
		if echoes {
			for _, m := range droppedLines.FindAllStringSubmatch(text.String(), -1) {
				n, err := strconv.Atoi(m[1])
				check(t, err)
				dropped += n
			}
			if want := statusOf(t, d+"/a").LogLinesDropped; dropped != want {
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
		held := connect(t, "unix", d+"/s")
		works(d) // so that held is accepted
		p.Signal(t, syscall.SIGTERM)
		testkit.Await(t, func() error { // it drains
			if _, err := os.Lstat(d + "/s"); err == nil {
				return errors.New("the socket is still there")
			}
			return nil
		})
		p.Signal(t, syscall.SIGTERM)
		p.WantStatus(t, -1)
		check(t, held.Close())
		// It ends.
		d = dir(t)
		p, r = logInto(t, d, args...)
		check(t, r.Close())
		fill(d)
		p.Stop(t)
		// The program fails, and cannot say why.
		p = testkit.Prepare(t, dir(t), append(program, "--listen", "none/s")...)
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
		p.WantStatus(t, 1)
		check(t, r.Close())
		cases += 5
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F54", Done: "the log of the server and of a relay goes into a full pipe that is not read, read again later, or closed; they get SIGTERM, twice, or fail", Count: cases,
		Outcome: fmt.Sprintf("clients and health checks are served as ever; %d lines dropped, counted and reported; each program ends with its exit status and removes its files", dropped),
	})
}
