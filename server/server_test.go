package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

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
			clientEchoes(t, d, "--connect", kind+":./s")
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
		holding.WantStatus(t, 0)
		// It may have noticed a file removed by hand before the signal.
		if status := old.Status(t); status != 0 && !byHand {
			t.Errorf("overlap %d: exit status %d, error %q", i, status, &old.Err)
		}
		if after := inodes(t, d+"/uds_socket", d+"/.uds_socket.lock"); after != before {
			t.Fatalf("overlap %d: the successor's files are %s, were %s", i, after, before)
		}
		clientEchoes(t, d)
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

func TestLimitIsInTheErrorAndSndbufIsTheCure(t *testing.T) {
	t.Parallel()
	limit, highest := testkit.Setting(t, "core/wmem_default")-32, 2*testkit.Setting(t, "core/wmem_max")
	large, sndbuf, tooHigh := min(400_000, highest-32), strconv.Itoa(min(1_000_000, highest)), strconv.Itoa(highest+2)
	random := make([]byte, max(large, limit+1))
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	tooMuch := fmt.Sprintf("send buffer of %s bytes: the system allows %d; raise net.core.wmem_max", tooHigh, highest)
	for _, kind := range kinds[1:] {
		d, cured := dir(t), dir(t)
		serve(t, d, "--listen", kind+":s")
		server := serve(t, cured, "--listen", kind+":s", "--sndbuf", sndbuf)
		for _, tt := range []struct {
			d      string
			bytes  int
			sndbuf string // 0: the system's
			err    string
		}{
			{d, limit, "0", ""},
			{d, limit + 1, "0", fmt.Sprintf("client: message too long (EMSGSIZE): %d bytes, the socket sends at most %d; raise SO_SNDBUF\n", limit+1, limit)},
			{cured, large, sndbuf, ""},
			{d, 1, tooHigh, tooMuch},
		} {
			message := string(random[:tt.bytes])
			status, stdout, stderr := run(t, tt.d, message, "client", "--log-level", "warn", "--connect", kind+":s", "--sndbuf", tt.sndbuf, "-")
			if failed := status == 1 && stdout == "" && tt.err != ""; !failed && (status != 0 || stdout != message) {
				t.Errorf("%s, %+v: exit status %d, %d bytes of output", kind, tt, status, len(stdout))
			}
			wantWords(t, stderr, tt.err)
		}
		wantFiles(t, d, ".s.lock", "s")
		server.Stop(t)
		status, _, stderr := run(t, cured, "", "server", "--listen", kind+":s", "--sndbuf", tooHigh)
		if status != 1 {
			t.Errorf("exit status %d", status)
		}
		wantWords(t, stderr, "server: listen "+kind+":s: ", tooMuch)
		wantFiles(t, cured)
	}
}

// A privileged client can send more than the server has room for. Here the
// server sees a system with a smaller limit: another file is mounted over the
// limit's file in its mount namespace.
func TestF27TruncatedMessageIsRefusedAndNoPrefixEchoed(t *testing.T) {
	t.Parallel()
	const rounds = 10
	const wmem = 5000 // the kernel doubles it and reserves 32 bytes
	fits, large := strings.Repeat("x", 2*wmem-32), strings.Repeat("x", 2*wmem-31)
	for kind, tt := range map[string]struct{ timeout, server, client string }{
		"datagram":  {"200ms", "dropped a message: ", "client: no answer for 200ms: received 0 messages"},
		"seqpacket": {"0s", "disconnected a client: ", "client: received 0 messages, but not the next one of "},
	} {
		t.Run(kind, func(t *testing.T) {
			d := dir(t)
			// A user namespace as well, if the test does not run as root.
			args := []string{"unshare", "--mount"}
			if os.Geteuid() != 0 {
				args = append(args, "--map-root-user")
			}
			testkit.NeedNamespace(t, args[1:]...)
			check(t, os.WriteFile(d+"/wmem_max", []byte(strconv.Itoa(wmem)+"\n"), 0o600))
			server := serving(t, start(t, d, append(args, "sh", "-euc", `
				mount --bind wmem_max /proc/sys/net/core/wmem_max
				rm wmem_max
				exec "$0" --listen "$1"`, testkit.Program("server"), kind+":s")...))

			for i := range rounds {
				status, stdout, stderr := run(t, d, large, "client", "--connect", kind+":s", "--timeout", tt.timeout, "-")
				if status != 1 || stdout != "" {
					t.Errorf("exit status %d, %d bytes of output", status, len(stdout))
				}
				wantWords(t, stderr, tt.client)
				if i < 5 { // the log has at most 5 lines a second
					server.Err.Await(t, i+1, fmt.Sprintf("%smessage is larger than the receive buffer: %d bytes, %d fit", tt.server, len(large), len(fits)))
				}
				status, stdout, stderr = run(t, d, fits, "client", "--connect", kind+":s", "-")
				if status != 0 || stdout != fits {
					t.Errorf("exit status %d, %d bytes of output, error %q", status, len(stdout), stderr)
				}
			}
			server.Stop(t)
			if n := strings.Count(server.Err.String(), "sending data back"); n != rounds {
				t.Errorf("%d of %d messages that fit were sent back:\n%s", n, rounds, &server.Err)
			}
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F27",
		Done:    "datagrams and records of one byte more than the server has room for, each followed by one that fits",
		Count:   2 * rounds,
		Outcome: "each refused, counted and logged with both numbers; no byte of it sent back; the next one echoed whole",
	})
}
