package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

const message = "This is the message.  It will be repeated."

func TestTranscripts(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--log-format", "plain")
	status, stdout, stderr := run(t, d, "", "client", "--log-format", "plain")
	server.Err.Await(t, 2, "waiting for a connection\n")

	if diff := cmp.Diff(`starting up on ./uds_socket
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
`, server.Err.String()); diff != "" {
		t.Errorf("server (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(`connecting to ./uds_socket
sending 'This is the message.  It will be repeated.'
received 'This is the mess'
received 'age.  It will be'
received ' repeated.'
closing socket
`, stderr); diff != "" {
		t.Errorf("client (-want +got):\n%s", diff)
	}
	if status != 0 || stdout != message {
		t.Errorf("the client's exit status is %d, its output %q", status, stdout)
	}
	server.Stop(t)
	if out := server.Out.String(); out != "" {
		t.Errorf("the server's output is %q", out)
	}
}

func TestFailureIsStatus1AndOneLine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		args  []string
		words string
	}{
		{"directory missing", []string{"server", "--listen", "none/s"}, "server: listen stream:none/s: "},
		{"directory in the way", []string{"server", "--listen", "."}, "not a socket"},
		{"no server to check", []string{"server", "healthcheck"}, "server: connect stream:./uds_socket: no such file or directory (ENOENT)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			status, stdout, stderr := run(t, d, "", tt.args...)
			if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
				t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
			}
			wantWords(t, stderr, tt.words)
			wantFiles(t, d)
		})
	}
}

func TestUsageErrorIsStatus2(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, tt := range []struct {
		args  []string
		words string
	}{
		{[]string{"server", "--no-such-flag"}, "unknown flag --no-such-flag"},
		{[]string{"server", "surplus"}, "surplus"},
		{[]string{"server", "--listen"}, "server: --listen: the value is missing (see server --help)"},
		{[]string{"server", "--chunk"}, "server: --chunk: the value is missing (see server --help)"},
		{[]string{"server", "--listen", "unix:/s"}, `unknown form "unix"`},
		{[]string{"server", "--listen", "tcp:7000"}, `"7000" is not HOST:PORT`},
		{[]string{"server", "--listen", "s", "--listen", "stream:s"}, "given twice"},
		{[]string{"server", "--listen", "stream:s", "--listen", "datagram:s"}, "given twice"},
		{[]string{"server", "--listen", "tcp:127.0.0.1:7000", "--listen", "tcp:127.0.0.1:7000"}, "given twice"},
		{[]string{"server", "--listen", strings.Repeat("s", 108)}, "path is 108 bytes, sun_path holds 107"},
		{[]string{"server", "--listen", "@" + strings.Repeat("s", 107)}, "path is 108 bytes, sun_path holds 107"},
		{[]string{"server", "--mode", "rw-rw----"}, "octal"},
		{[]string{"server", "--chunk", "0"}, "--chunk 0: choose from 1"},
		{[]string{"server", "--backlog=-1"}, "--backlog -1"},
		{[]string{"server", "--sndbuf=-1"}, "--sndbuf -1: choose from 0"},
		{[]string{"server", "--max-connections=-1"}, "--max-connections -1"},
		{[]string{"server", "--max-per-user=-1"}, "--max-per-user -1: choose 0"},
		{[]string{"server", "--idle-timeout=-1s"}, "--idle-timeout -1s: choose 0s"},
		{[]string{"server", "--write-timeout=-1s"}, "--write-timeout -1s: choose 0s"},
		{[]string{"server", "--admin", "datagram:admin"}, "--admin datagram:admin: HTTP needs a stream"},
		{[]string{"server", "--admin", "tcp:127.0.0.1:7000"}, "HTTP needs a stream"},
		{[]string{"server", "--admin", "./uds_socket"}, "--admin stream:./uds_socket: the path is given to --listen too"},
		{[]string{"server", "--admin", ""}, "the path is empty"},
		{[]string{"server", "--admin", "@admin"}, "--admin stream:@admin: an abstract name is open to all users"},
		{[]string{"server", "--allow-uid="}, `"" is not a user or group number; write one`},
		{[]string{"server", "--allow-gid", "1,,2"}, `"" is not a user or group number`},
		{[]string{"server", "healthcheck", "--timeout=-1s"}, "--timeout -1s: choose more than 0s (see server healthcheck --help)"},
		{[]string{"server", "--drain-timeout=-1s"}, "--drain-timeout -1s"},
		{[]string{"server", "--log-format", "xml"}, "plain"},
		{[]string{"server", "healthcheck", "--listen", ""}, "no address"},
	} {
		status, stdout, stderr := run(t, d, "", tt.args...)
		first, rest, _ := strings.Cut(stderr, "\n")
		if status != 2 || stdout != "" || !strings.HasPrefix(first, "server: ") || rest != "" || !strings.HasSuffix(first, " --help)") {
			t.Errorf("%q: exit status %d, output %q, error %q", tt.args, status, stdout, stderr)
		}
		wantWords(t, first, tt.words)
	}
	wantFiles(t, d)
}

func TestHelpIsOutputAndStatus0(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"server", "client"} {
		status, stdout, stderr := run(t, dir(t), "", program, "--help")
		if status != 0 || stderr != "" {
			t.Errorf("exit status %d, error %q", status, stderr)
		}
		wantWords(t, stdout, "Usage: "+program, "--log-format", "--chunk")
	}
}

func TestEnvironmentSetsFlags(t *testing.T) {
	t.Parallel()
	need(t, "env", "coreutils")
	d := dir(t)
	server := start(t, d, "env", "UDS_LISTEN=stream:a,b", "UDS_MODE=0600", "UDS_LOG_FORMAT=plain", testkit.Program("server"))
	server.Err.Await(t, 1, "starting up on a\nstarting up on b\nwaiting for a connection\n")
	info, err := os.Lstat(d + "/b")
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	for _, path := range []string{"a", "b"} {
		if status, stdout, stderr := run(t, d, "", "env", "UDS_CONNECT="+path, testkit.Program("client"), "hello"); status != 0 || stdout != "hello" {
			t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
		}
	}
	server.Stop(t)
}

func TestServerLeavesRegularFileAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	path := d + "/uds_socket"
	check(t, os.WriteFile(path, []byte("precious"), 0o640))
	status, _, stderr := run(t, d, "", "server")
	if status != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit status %d, error %q", status, stderr)
	}
	wantWords(t, stderr, "server: listen stream:./uds_socket: not a socket: ./uds_socket is a regular file", "left alone")
	if got, err := os.ReadFile(path); err != nil || string(got) != "precious" {
		t.Errorf("the file holds %q (%v)", got, err)
	}
	wantFiles(t, d, "uds_socket")
}

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

func TestKilledServerIsReplaced(t *testing.T) {
	t.Parallel()
	d := dir(t)
	first := serve(t, d)
	first.Signal(t, syscall.SIGKILL)
	first.Status(t)
	wantFiles(t, d, ".uds_socket.lock", "uds_socket")
	second := serve(t, d)
	if status, stdout, stderr := run(t, d, "", "client"); status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	second.Stop(t)
}

func TestSignalDrains(t *testing.T) {
	t.Parallel()
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			server := serve(t, d, "--log-format", "plain", "--log-level", "debug", "--drain-timeout", "60s")
			client := start(t, d, "client", "-")
			_, err := io.WriteString(client.In, "before ")
			check(t, err)
			client.Out.Await(t, 1, "before ")

			server.Signal(t, s)
			server.Err.Await(t, 1, "draining")
			_, err = io.WriteString(client.In, "after")
			check(t, err)
			check(t, client.In.Close())
			if status := client.Status(t); status != 0 || client.Out.String() != "before after" {
				t.Errorf("the client's exit status is %d, its output %q, its error %q", status, &client.Out, &client.Err)
			}
			if status := server.Status(t); status != 0 {
				t.Errorf("exit status is %d after:\n%s", status, &server.Err)
			}
			wantFiles(t, d)
		})
	}
}

func TestSecondSignalEndsServerAtOnce(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--drain-timeout", "60s")
	hanging, err := net.Dial("unix", d+"/uds_socket")
	check(t, err)
	defer func() { _ = hanging.Close() }()
	server.Err.Await(t, 1, "connection from")
	server.Signal(t, syscall.SIGTERM)
	awaitEmpty(t, d)

	// The server stops catching signals at about this moment; an earlier
	// signal counts with the first.
	late, again := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer again.Stop()
	for {
		_ = server.Cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-server.Ended:
			ws := server.Cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ws.Signaled() || ws.Signal() != syscall.SIGTERM {
				t.Errorf("the server ended with %v", server.Cmd.ProcessState)
			}
			wantFiles(t, d)
			return
		case <-again.C:
		case <-late:
			t.Fatal("the server continues to drain")
		}
	}
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

func TestDrainTimeoutEndsHangingClient(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--drain-timeout", "50ms")
	hanging, err := net.Dial("unix", d+"/uds_socket")
	check(t, err)
	defer func() { _ = hanging.Close() }()
	server.Err.Await(t, 1, "connection from")
	server.Stop(t)
	wantWords(t, server.Err.String(), "drain timeout is over", "connections=1")
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

func TestJSONLinesHaveTypedFields(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--log-format", "json")
	client := start(t, d, "client", "--log-format", "json", "--bind", "./me", "hello")
	if status := client.Status(t); status != 0 {
		t.Fatal(status)
	}
	server.Err.Await(t, 2, "waiting for a connection")
	pid, uid, gid := float64(client.Pid()), float64(os.Geteuid()), float64(os.Getegid())
	for _, tt := range []struct {
		who, text string
		want      []map[string]any
	}{
		{"server", server.Err.String(), []map[string]any{
			{"message": "starting up on ./uds_socket", "listen": "stream:./uds_socket"},
			{"message": "waiting for a connection"},
			{"message": "connection from", "conn": 1.0, "peer": "./me", "uid": uid, "gid": gid, "pid": pid},
			{"message": "received 'hello'", "conn": 1.0, "peer": "./me", "bytes": 5.0},
			{"message": "sending data back to the client", "conn": 1.0, "peer": "./me", "bytes": 5.0},
			{"message": "received ''", "conn": 1.0, "peer": "./me", "bytes": 0.0},
			{"message": "no data from", "conn": 1.0, "peer": "./me"},
			{"message": "waiting for a connection", "conn": 1.0, "peer": "./me"},
		}},
		{"client", client.Err.String(), []map[string]any{
			{"message": "connecting to ./uds_socket", "connect": "stream:./uds_socket"},
			{"message": "sending 'hello'", "bytes": 5.0},
			{"message": "received 'hello'", "bytes": 5.0},
			{"message": "closing socket"},
		}},
	} {
		var got []map[string]any
		for line := range strings.Lines(tt.text) {
			e := map[string]any{}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if _, err := time.Parse(time.RFC3339, fmt.Sprint(e["time"])); err != nil || e["level"] != "info" {
				t.Errorf("time %v, level %v", e["time"], e["level"])
			}
			delete(e, "time")
			delete(e, "level")
			got = append(got, e)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.who, diff)
		}
	}
}

func TestRetryWaitsForServer(t *testing.T) {
	t.Parallel()
	d := dir(t)
	client := start(t, d, "client", "--retry", "60s", "--bind", "auto")
	client.Err.Await(t, 1, "connecting to")
	server := serve(t, d)
	if status := client.Status(t); status != 0 || client.Out.String() != message {
		t.Errorf("exit status %d, output %q, error %q", status, &client.Out, &client.Err)
	}
	server.Stop(t)
}

func TestWithoutServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		args, words []string
	}{
		{"at once", nil, []string{"client: connect stream:./uds_socket: no such file or directory (ENOENT)", "start the server first, or keep trying (--retry waits for it)"}},
		{"after a while", []string{"--retry", "50ms"}, []string{"(ENOENT)", "tried for 50ms"}},
		{"with a name", []string{"--bind", "auto"}, []string{"(ENOENT)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			status, stdout, stderr := run(t, d, "", append([]string{"client", "--log-level", "warn"}, tt.args...)...)
			if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
			}
			wantWords(t, stderr, tt.words...)
			wantFiles(t, d)
		})
	}
}

func TestHealthCheck(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--log-format", "plain")
	healthy := func() {
		t.Helper()
		if status, stdout, stderr := run(t, d, "", "server", "healthcheck", "--timeout", "20s"); status != 0 || stdout != "" || stderr != "" {
			t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
		}
	}
	healthy()

	goOn := server.Pause(t)
	status, _, stderr := run(t, d, "", "server", "healthcheck", "--timeout", "100ms")
	if status != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit status %d, error %q", status, stderr)
	}
	wantWords(t, stderr, "server: health check of stream:./uds_socket: connected, but no echo in time", "paused or overloaded")

	goOn()
	healthy()
	server.Stop(t)
	if diff := cmp.Diff("starting up on ./uds_socket\nwaiting for a connection\n", server.Err.String()); diff != "" {
		t.Errorf("health checks are mentioned (-want +got):\n%s", diff)
	}

	status, _, stderr = run(t, d, "", "server", "healthcheck")
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, "ENOENT", "start the server first")
}

// Any client can take a name like a health check's; that must not keep it out
// of the log.
func TestHealthCheckNameHidesNoOtherClient(t *testing.T) {
	t.Parallel()
	const uid = 10003
	d := dir(t)
	server := serve(t, d, "--log-format", "plain", "--mode", "0666")
	client := startAs(t, uid, d, "client", "--bind", "@udsecho.healthcheck."+filepath.Base(d), "let me in")
	if status := client.Status(t); status != 0 {
		t.Fatalf("exit status %d, error %q", status, &client.Err)
	}
	if status, _, stderr := run(t, d, "", "client"); status != 0 {
		t.Fatal(stderr)
	}
	server.Err.Await(t, 1, "received ' repeated.'")
	server.Stop(t)
	if !strings.Contains(server.Err.String(), "received 'let me in'") {
		t.Errorf("a client of user %d is not mentioned:\n%s", uid, &server.Err)
	}
}

func TestMaxConnectionsRejectsFurtherClients(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--max-connections", "1")
	first := start(t, d, "client", "-")
	_, err := io.WriteString(first.In, "hello")
	check(t, err)
	first.Out.Await(t, 1, "hello")

	status, stdout, stderr := run(t, d, "", "client", "--bind", "auto")
	if status != 1 || stdout != "" {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	server.Err.Await(t, 1, "rejected a client: connection limit (1) reached")
	check(t, first.In.Close())
	if status := first.Status(t); status != 0 {
		t.Errorf("exit status %d, error %q", status, &first.Err)
	}
	server.Err.Await(t, 2, "waiting for a connection")
	if status, stdout, stderr := run(t, d, "", "client"); status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	server.Stop(t)
}

// The table must not grow while clients connect: in a process of several
// threads the kernel then waits, and a burst of clients fills the backlog.
func TestDescriptorTableHasRoomForAllConnections(t *testing.T) {
	t.Parallel()
	server := serve(t, dir(t), "--max-connections", "500")
	if n := server.StatusNumber(t, "FDSize"); n < 500 {
		t.Errorf("the table has room for %d descriptors", n)
	}
	server.Stop(t)
}

func TestAbstractName(t *testing.T) {
	t.Parallel()
	d := dir(t)
	name := "stream:@" + filepath.Base(d)
	server := serve(t, d, "--listen", name)
	wantWords(t, server.Err.String(), "clients in other containers do not find it")
	if status, stdout, stderr := run(t, d, "", "client", "--connect", name, "--bind", "auto"); status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	wantFiles(t, d)
	server.Stop(t)
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

func TestStrangersAreServed(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d)
	for _, tt := range []struct {
		pkg  string
		args []string
	}{
		{"socat", []string{"socat", "-t", "60", "-", "UNIX-CONNECT:uds_socket"}},
		{"netcat-openbsd", []string{"nc.openbsd", "-N", "-U", "uds_socket"}},
		{"python3", []string{"python3", "-c", pythonClient}},
	} {
		t.Run(tt.pkg, func(t *testing.T) {
			need(t, tt.args[0], tt.pkg)
			status, stdout, stderr := run(t, d, message+"\n", tt.args...)
			if status != 0 || stdout != message+"\n" {
				t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
			}
		})
	}
	server.Stop(t)
}
