package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
	"golang.org/x/sys/unix"
)

// hostile is a name with characters that must not reach a terminal or a line
// of the log: colours, a new title, a new line, the end of a string, a control
// character in two bytes, another direction of writing.
const hostile = "x\x1b[31m\x1b]0;title\x07\r\n\t\x01\x7f'\"\\ y=1\u009b31m\u202e"

func wantPrintable(t *testing.T, text string) {
	t.Helper()
	for _, b := range []byte(text) {
		if b != '\n' && (b < 0x20 || b > 0x7e) {
			t.Errorf("byte %#02x is in %q", b, text)
			return
		}
	}
}

// wantJSON wants every line to be JSON and UTF-8, and returns the number of
// lines.
func wantJSON(t *testing.T, text string) (lines int) {
	t.Helper()
	for line := range strings.Lines(text) {
		lines++
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %q", line)
		}
		wantPrintable(t, line)
	}
	return lines
}

func TestHostileBytesNeverReachTheLog(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"plain", "console", "json"} {
		for _, tt := range []struct {
			kind, last string
			lines      int
		}{
			{"datagram", "sending data back", 4},
			// Two lines for each receive of 16 bytes, and for the shorter last one.
			{"stream", "no data from", 8 + 2*(len(hostile)/16)},
		} {
			t.Run(format+" "+tt.kind, func(t *testing.T) {
				t.Parallel()
				d := dir(t)
				server := serve(t, d, "--log-format", format, "--listen", tt.kind+":"+hostile)
				status, stdout, stderr := run(t, d, "", "client", "--log-format", format, "--connect", tt.kind+":./"+hostile,
					"--bind", hostile+"client", "--chunk", "1024", hostile)
				if status != 0 || stdout != hostile {
					t.Errorf("exit status %d, output %q", status, stdout)
				}
				server.Err.Await(t, 1, tt.last)
				server.Stop(t)
				wantPrintable(t, stderr)
				wantPrintable(t, server.Err.String())
				if n := strings.Count(server.Err.String(), "\n"); n != tt.lines {
					t.Errorf("%d lines, want %d:\n%s", n, tt.lines, &server.Err)
				}
				if format != "plain" { // the peer is named
					wantWords(t, server.Err.String(), "xaeclient")
				}
			})
		}
	}
}

func TestHostileBytesNeverReachTheErrorLine(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, args := range [][]string{
		{"client", "--connect", "./" + hostile},
		{"client", "--bind", hostile + "/client"},
		{"client", "--" + hostile},
		{"server", "--listen", "./" + hostile + "/s"},
		{"server", "--listen", hostile + ":s"},
		{"server", "--mode", hostile},
		{"server", "healthcheck", "--listen", "./" + hostile},
	} {
		status, _, stderr := run(t, d, "", args...)
		if status == 0 {
			t.Errorf("%q: exit status 0", args)
		}
		wantPrintable(t, stderr)
	}
}

// notUTF8 holds bytes that a path may contain: any except NUL and /.
const notUTF8 = "\xff\xfe\xc3(\xed\xa0\x80 \x80"

func TestF31PathThatIsNotTextIsServedAndTheLogIsJSON(t *testing.T) {
	t.Parallel()
	need(t, "env", "coreutils")
	const rounds = 10
	echoes, lines := 0, 0
	for _, kind := range kinds {
		d := dir(t)
		address := kind + ":./" + notUTF8
		// The address comes from the variable, which is read like a flag, with
		// one more step.
		server := serving(t, start(t, d, "env", "UDS_LISTEN="+address+"flag,"+address, testkit.Program("server"), "--log-format", "json"))
		for range rounds {
			status, stdout, stderr := run(t, d, "", "client", "--log-format", "json", "--connect", address, "--bind", "./"+notUTF8+"client", message+notUTF8)
			if status != 0 || stdout != message+notUTF8 {
				t.Errorf("%s: exit status %d, output %q, error %q", kind, status, stdout, stderr)
			}
			echoes++
			lines += wantJSON(t, stderr)
		}
		// A failure is one readable and printable line.
		status, _, stderr := run(t, d, "", "client", "--connect", address+"missing", "--log-level", "warn")
		if status != 1 {
			t.Errorf("%s: exit status %d", kind, status)
		}
		wantPrintable(t, stderr)
		server.Stop(t)
		lines += wantJSON(t, server.Err.String())
		wantWords(t, server.Err.String(), `\\xff\\xfe`, "client")
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F31",
		Done:    "servers of each type on a path that is not UTF-8, from a variable, and clients with such a name and such a message",
		Count:   echoes,
		Outcome: fmt.Sprintf("every echo identical; each of %d lines of the log valid JSON and printable", lines),
	})
}

func TestF33BadPeersAndTheLog(t *testing.T) {
	t.Parallel()
	const n = 10_000
	lines := 0
	var took time.Duration
	for _, format := range []string{"plain", "console", "json"} {
		d := dir(t)
		server := start(t, d, "server", "--log-format", format, "--log-level", "warn", "--max-connections", "1", "--admin", "admin", "--listen", "s,datagram:d")
		awaitServer(t, d+"/admin")
		first := connect(t, "unix", d+"/s")
		check(t, echoed(first, "mine"))
		began := time.Now()
		name := func(network string, i int) *net.UnixAddr {
			return &net.UnixAddr{Net: network, Name: fmt.Sprintf("@%s\x00%s%d", hostile, format, i)}
		}
		for i := range n / 2 { // each with a name of its own, and each above the limit
			err := error(unix.EAGAIN)
			for errors.Is(err, unix.EAGAIN) {
				var conn net.Conn
				if conn, err = net.DialUnix("unix", name("unix", i), &net.UnixAddr{Net: "unix", Name: d + "/s"}); err == nil {
					err = conn.Close()
				}
			}
			check(t, err)
		}
		bad, err := net.ListenUnixgram("unixgram", name("unixgram", n))
		check(t, err)
		nameless, err := net.Dial("unixgram", d+"/d")
		check(t, err)
		to := &net.UnixAddr{Net: "unixgram", Name: d + "/d"}
		for range n / 4 {
			_, err := nameless.Write([]byte(hostile))
			check(t, err)
			_, _, err = bad.WriteMsgUnix([]byte(hostile), unix.UnixRights(0), to)
			if !errors.Is(err, unix.EPERM) { // with SO_PASSRIGHTS off the kernel rejects them itself
				check(t, err)
			}
		}
		check(t, errors.Join(bad.Close(), nameless.Close()))
		s := awaitStatus(t, d+"/admin", func(s status) bool { return s.Refused["nameless"] == n/4 && s.Refused["connections"] == n/2 })
		if s.Connections != 1 {
			t.Errorf("%+v", s)
		}
		check(t, errors.Join(echoed(first, "mine"), first.Close()))
		awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == 0 })
		took += time.Since(began)
		seconds := int(time.Since(began)/time.Second) + 1
		server.Stop(t)

		log := server.Err.String()
		wantPrintable(t, log)
		if format == "json" {
			wantJSON(t, log)
		}
		got := strings.Count(log, "\n")
		if got < 2 || got > 15*seconds { // for three causes
			t.Errorf("%s: %d lines in %d s", format, got, seconds)
		}
		lines += got
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F33", Done: "in each of three formats, bad peers with terminal codes and new lines in their names and messages: too many, nameless, with descriptors", Count: 3 * n,
		Outcome: fmt.Sprintf("all counted; %d lines in %.1f s, 5 a second and cause at most; no raw ESC or CR, one record a line", lines, took.Seconds()),
	})
}

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
	for _, program := range [][]string{{"server", "--admin", "a"}, {"client", "forward", "--connect", target + "/t"}} {
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
