package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

const message = "This is the message.  It will be repeated."

// kinds are the three types of AF_UNIX.
var kinds = []string{"stream", "datagram", "seqpacket"}

func TestF3SecondServerFailsAndTheFirstContinuesToServe(t *testing.T) {
	t.Parallel()
	const attempts = 10
	second := testkit.Plain(t, "server") // its speed is reported
	var took []time.Duration
	for _, kind := range kinds {
		d := dir(t)
		first := serve(t, d, "--listen", kind+":./s")
		before := inodes(t, d+"/s", d+"/.s.lock")
		for range attempts {
			// It listens on all of its addresses or on none.
			began := time.Now()
			status, _, stderr := run(t, d, "", second, "--listen", "free", "--listen", kind+":./s")
			took = append(took, time.Since(began))
			if status != 1 || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit status %d, error %q", status, stderr)
			}
			wantWords(t, stderr, "in use", ".s.lock", "stop it first or choose another path")
			wantFiles(t, d, ".s.lock", "s")
			if after := inodes(t, d+"/s", d+"/.s.lock"); after != before {
				t.Errorf("the first one's files are %s, were %s", after, before)
			}
			if status, stdout, stderr := run(t, d, "", "client", "--connect", kind+":./s"); status != 0 || stdout != message {
				t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
			}
		}
		first.Stop(t)
	}
	slices.Sort(took)
	median := took[len(took)/2]
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F3",
		Done:    "a second server started on the path of one that serves, for each type",
		Count:   len(took),
		Outcome: fmt.Sprintf("exit 1 after %d ms; the first one's files are the same inodes, and it serves", median.Milliseconds()),
	})
}

// inodes returns the inodes of paths.
func inodes(t *testing.T, paths ...string) string {
	t.Helper()
	var all []string
	for _, path := range paths {
		var st unix.Stat_t
		check(t, unix.Lstat(path, &st))
		all = append(all, fmt.Sprint(st.Ino))
	}
	return strings.Join(all, " ")
}

func TestF2PathSurvivesTheOldServersEnd(t *testing.T) {
	t.Parallel()
	overlaps := testkit.Count(10, 100)
	d := dir(t)
	old := serve(t, d)
	for i := range overlaps {
		holding := start(t, d, "client", "-") // it keeps the old server from ending
		_, err := io.WriteString(holding.In, message)
		check(t, err)
		holding.Out.Await(t, 1, message)
		byHand := i%2 == 1
		if byHand {
			old.Pause(t) // otherwise it would listen again
			check(t, os.Remove(d+"/uds_socket"))
			check(t, os.Remove(d+"/.uds_socket.lock"))
		} else {
			old.Signal(t, syscall.SIGTERM)
			awaitEmpty(t, d)
		}
		successor := serve(t, d)
		before := inodes(t, d+"/uds_socket", d+"/.uds_socket.lock")
		if byHand {
			old.Signal(t, syscall.SIGTERM)
			old.Signal(t, syscall.SIGCONT)
		}
		check(t, holding.In.Close())
		if status := holding.Status(t); status != 0 {
			t.Errorf("overlap %d: the old server's client: exit status %d, error %q", i, status, &holding.Err)
		}
		// It may have noticed a file removed by hand before the signal.
		if status := old.Status(t); status != 0 && !byHand {
			t.Errorf("overlap %d: exit status %d, error %q", i, status, &old.Err)
		}
		if after := inodes(t, d+"/uds_socket", d+"/.uds_socket.lock"); after != before {
			t.Fatalf("overlap %d: the successor's files are %s, were %s", i, after, before)
		}
		if status, stdout, stderr := run(t, d, "", "client"); status != 0 || stdout != message {
			t.Fatalf("overlap %d: exit status %d, output %q, error %q", i, status, stdout, stderr)
		}
		old = successor
	}
	old.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F2",
		Done: "a server ends after its successor has bound the path: told to stop while a client holds it, " +
			"and every other time paused while its files are removed by hand",
		Count:   overlaps,
		Outcome: "each time the successor's socket and lock are the same inodes, and it serves",
	})
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
		server := start(t, d, "env", "UDS_LISTEN="+address+"flag,"+address, testkit.Program("server"), "--log-format", "json")
		server.Err.Await(t, 1, "waiting for a ")
		for range rounds {
			client := start(t, d, "client", "--log-format", "json", "--connect", address, "--bind", "./"+notUTF8+"client", message+notUTF8)
			if status := client.Status(t); status != 0 || client.Out.String() != message+notUTF8 {
				t.Errorf("%s: exit status %d, output %q, error %q", kind, status, &client.Out, &client.Err)
			}
			echoes++
			lines += wantJSON(t, client.Err.String())
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

// awaitEmpty waits until the server has removed its files, which it does not
// log.
func awaitEmpty(t *testing.T, d string) {
	t.Helper()
	testkit.Await(t, func() error {
		entries, err := os.ReadDir(d)
		if len(entries) > 0 {
			return fmt.Errorf("%v is still there", entries)
		}
		return err
	})
}

// hostile is a name with characters that must not reach a terminal or a line
// of the log: colours, a new title, a new line, the end of a string, a control
// character in two bytes, another direction of writing.
const hostile = "x\x1b[31m\x1b]0;title\x07\r\n\t\x01\x7f'\"\\ y=1\u009b31m\u202e"

func TestHostileBytesNeverReachTheLog(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"plain", "console", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			server := serve(t, d, "--log-format", format, "--listen", hostile+"server")
			status, stdout, stderr := run(t, d, "", "client", "--log-format", format, "--connect", "./"+hostile+"server",
				"--bind", hostile+"client", "--chunk", "1024", hostile)
			if status != 0 || stdout != hostile {
				t.Errorf("exit status %d, output %q", status, stdout)
			}
			server.Err.Await(t, 2, "waiting for a connection")
			server.Stop(t)
			wantPrintable(t, stderr)
			wantPrintable(t, server.Err.String())
			// Two lines for each receive of 16 bytes, and for the shorter last
			// one.
			if got, want := strings.Count(server.Err.String(), "\n"), 8+2*(len(hostile)/16); got != want {
				t.Errorf("%d lines, want %d:\n%s", got, want, &server.Err)
			}
			if format != "plain" && !strings.Contains(server.Err.String(), "[31m") {
				t.Errorf("the peer is not named in:\n%s", &server.Err)
			}
		})
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

func wantPrintable(t *testing.T, text string) {
	t.Helper()
	for _, b := range []byte(text) {
		if b != '\n' && (b < 0x20 || b > 0x7e) {
			t.Errorf("byte %#02x is in %q", b, text)
			return
		}
	}
}

// The original client, in Python, with other messages.
const pythonClient = `
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.connect("./uds_socket")
message = sys.stdin.buffer.read()
sock.sendall(message)
received = 0
while received < len(message):
    data = sock.recv(16)
    received += len(data)
    sys.stdout.buffer.write(data)
sock.close()
`
