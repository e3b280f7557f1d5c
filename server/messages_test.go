package main_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

// transcripts are the output of server and client for one message and its
// echo, over the types that keep boundaries.
var transcripts = map[string]string{
	"datagram": `starting up on ./s
waiting for a message
received 'This is the message.  It will be repeated.'
sending data back to the client
`,
	"seqpacket": `starting up on ./s
waiting for a connection
connection from
received 'This is the message.  It will be repeated.'
sending data back to the client
no data from
waiting for a connection
`,
}

const messageClient = `connecting to ./s
sending 'This is the message.  It will be repeated.'
received 'This is the message.  It will be repeated.'
closing socket
`

func TestMessageTranscripts(t *testing.T) {
	t.Parallel()
	for kind, want := range transcripts {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			server := serve(t, d, "--log-format", "plain", "--listen", kind+":./s")
			status, stdout, stderr := run(t, d, "", "client", "--log-format", "plain", "--connect", kind+":./s")
			if status != 0 || stdout != message {
				t.Errorf("the client's exit status is %d, its output %q", status, stdout)
			}
			if diff := cmp.Diff(messageClient, stderr); diff != "" {
				t.Errorf("client (-want +got):\n%s", diff)
			}
			wantFiles(t, d, ".s.lock", "s")
			_, echoed, _ := strings.Cut(want, "received ")
			server.Err.Await(t, 1, echoed)
			if diff := cmp.Diff(want, server.Err.String()); diff != "" {
				t.Errorf("server (-want +got):\n%s", diff)
			}
			server.Stop(t)
			if out := server.Out.String(); out != "" {
				t.Errorf("the server's output is %q", out)
			}
		})
	}
}

// loopback returns a HOST:PORT that is not in use: all of 127.0.0.0/8 is this
// host.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d:7000", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

func TestAllTypesInOneServer(t *testing.T) {
	t.Parallel()
	d := dir(t)
	internet := loopback()
	addresses := []string{"stream:./s", "datagram:./d", "seqpacket:./q", "tcp:" + internet}
	var listen []string
	for _, a := range addresses {
		listen = append(listen, "--listen", a)
	}
	server := serve(t, d, append(listen, "--log-format", "plain")...)
	if diff := cmp.Diff("starting up on ./s\nstarting up on ./d\nstarting up on ./q\nstarting up on "+internet+
		"\nwaiting for a connection\n", server.Err.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Health checks on Unix sockets are not logged.
	if status, stdout, stderr := run(t, d, "", append([]string{"server", "healthcheck"}, listen[:6]...)...); status != 0 || stdout+stderr != "" {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	if n := strings.Count(server.Err.String(), "\n"); n != 5 {
		t.Errorf("health checks are mentioned:\n%s", &server.Err)
	}
	if status, stdout, stderr := run(t, d, "", append([]string{"server", "healthcheck"}, listen[6:]...)...); status != 0 || stdout+stderr != "" {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	much := strings.Repeat(message+"\n", 1000)
	for range 2 {
		for _, a := range addresses {
			for _, tt := range []struct{ arg, stdin, want string }{
				{"hello", "", "hello"},
				{"", "", ""},
				{"-", much, much},
			} {
				status, stdout, stderr := run(t, d, tt.stdin, "client", "--connect", a, tt.arg)
				if status != 0 || stdout != tt.want {
					t.Errorf("%s: exit status %d, %d bytes of output, not %d, error %q", a, status, len(stdout), len(tt.want), stderr)
				}
			}
		}
	}
	wantFiles(t, d, ".d.lock", ".q.lock", ".s.lock", "d", "q", "s")
	server.Stop(t)
}

func TestServerListensOnAllOrNone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	status, _, stderr := run(t, d, "", "server", "--listen", "datagram:d", "--listen", "seqpacket:q", "--listen", "datagram:file")
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, "server: listen datagram:file: not a socket: file is a regular file")
	wantFiles(t, d, "file")
}

func TestStandardInputGoesInMessages(t *testing.T) {
	t.Parallel()
	for kind := range transcripts {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			server := serve(t, d, "--log-format", "plain", "--listen", kind+":./s")
			want := ""
			for _, tt := range []struct {
				args []string
				in   string
				want []string
			}{
				{nil, "all of it", []string{"all of it"}},
				{[]string{"--chunk", "0"}, "again", []string{"again"}},
				{nil, "", []string{""}},
				{[]string{"--chunk", "4"}, "all of it", []string{"all ", "of i", "t"}},
				{[]string{"--chunk", "4", "--window", "1"}, "1234567", []string{"1234", "567"}},
			} {
				args := append([]string{"client", "--connect", kind + ":./s", "-"}, tt.args...)
				if status, stdout, stderr := run(t, d, tt.in, args...); status != 0 || stdout != tt.in {
					t.Errorf("%q: exit status %d, output %q, error %q", args, status, stdout, stderr)
				}
				for _, m := range tt.want {
					want += "received '" + m + "'\n"
				}
			}
			server.Stop(t)
			got := ""
			for line := range strings.Lines(server.Err.String()) {
				if strings.HasPrefix(line, "received") {
					got += line
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNoEchoPrintsTheAnswerOfEachType(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "datagram", "seqpacket"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			server := serve(t, d, "--listen", kind+":./s")
			for _, tt := range []struct {
				args     []string
				in, want string
			}{
				{nil, "", message},
				{[]string{"-"}, "all of it", "all of it"},
				{[]string{"--chunk", "4", "-"}, "all of it", "all of it"},
				{[]string{"--hex", "hello"}, "", "00000000  68 65 6c 6c 6f                                    |hello|\n"},
			} {
				silence := patience
				if kind == "datagram" { // it does not see the end, so it waits this long
					silence = 2 * time.Second
				}
				args := append([]string{"client", "--no-echo", "--timeout", silence.String(), "--connect", kind + ":./s"}, tt.args...)
				if status, stdout, stderr := run(t, d, tt.in, args...); status != 0 || stdout != tt.want {
					t.Errorf("%q: exit status %d, output %q, error %q", args, status, stdout, stderr)
				}
			}
			server.Stop(t)
		})
	}
}

func TestLimitIsInTheErrorAndSndbufIsTheCure(t *testing.T) {
	t.Parallel()
	limit, highest := testkit.Setting(t, "core/wmem_default")-32, 2*testkit.Setting(t, "core/wmem_max")
	large := min(400_000, highest-32)
	random := make([]byte, max(large, limit+1))
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	for kind := range transcripts {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			serve(t, d, "--listen", kind+":s")
			client := func(d string, n int, args ...string) (status int, stdout, stderr string) {
				return run(t, d, string(random[:n]), append([]string{"client", "--log-level", "warn", "--connect", kind + ":s", "-"}, args...)...)
			}
			if status, stdout, stderr := client(d, limit); status != 0 || stdout != string(random[:limit]) {
				t.Errorf("%d bytes: exit status %d, %d bytes of output, error %q", limit, status, len(stdout), stderr)
			}
			want := fmt.Sprintf("client: message too long (EMSGSIZE): %d bytes, the socket sends at most %d; raise SO_SNDBUF\n", limit+1, limit)
			if status, stdout, stderr := client(d, limit+1); status != 1 || stdout != "" || stderr != want {
				t.Errorf("%d bytes: exit status %d, %d bytes of output, error %q, not %q", limit+1, status, len(stdout), stderr, want)
			}

			sndbuf := strconv.Itoa(min(1_000_000, highest))
			cured := dir(t)
			server := serve(t, cured, "--listen", kind+":s", "--sndbuf", sndbuf)
			if status, stdout, stderr := client(cured, large, "--sndbuf", sndbuf); status != 0 || stdout != string(random[:large]) {
				t.Errorf("%d bytes with --sndbuf %s: exit status %d, %d bytes of output, error %q", large, sndbuf, status, len(stdout), stderr)
			}
			server.Stop(t)

			tooHigh := strconv.Itoa(highest + 2)
			words := fmt.Sprintf("send buffer of %s bytes: the system allows %d; raise net.core.wmem_max", tooHigh, highest)
			status, _, stderr := client(d, 1, "--sndbuf", tooHigh)
			if status != 1 {
				t.Errorf("exit status %d", status)
			}
			wantWords(t, stderr, words)
			wantFiles(t, d, ".s.lock", "s")
			if status, _, stderr = run(t, cured, "", "server", "--listen", kind+":s", "--sndbuf", tooHigh); status != 1 {
				t.Errorf("exit status %d", status)
			}
			wantWords(t, stderr, "server: listen "+kind+":s: ", words)
			wantFiles(t, cured)
		})
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
	for kind, words := range map[string]struct{ server, client string }{
		"datagram":  {"dropped a message: ", "client: no answer for 200ms: received 0 messages"},
		"seqpacket": {"disconnected a client: ", "client: received 0 messages, but not the next one of "},
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
			server := start(t, d, append(args, "sh", "-euc", `
				mount --bind wmem_max /proc/sys/net/core/wmem_max
				rm wmem_max
				exec "$0" --listen "$1"`, testkit.Program("server"), kind+":s")...)
			server.Err.Await(t, 1, "waiting for a ")

			for i := range rounds {
				status, stdout, stderr := run(t, d, large, "client", "--connect", kind+":s", "--timeout", "200ms", "-")
				if status != 1 || stdout != "" {
					t.Errorf("exit status %d, %d bytes of output", status, len(stdout))
				}
				wantWords(t, stderr, words.client)
				if i < 5 { // the log has at most 5 lines a second
					server.Err.Await(t, i+1, fmt.Sprintf("%smessage is larger than the receive buffer: %d bytes, %d fit", words.server, len(large), len(fits)))
				}
				status, stdout, stderr = run(t, d, fits, "client", "--connect", kind+":s", "-")
				if status != 0 || stdout != fits {
					t.Errorf("exit status %d, %d bytes of output, error %q", status, len(stdout), stderr)
				}
			}
			server.Err.Await(t, rounds, "sending data back")
			if n := strings.Count(server.Err.String(), "sending data back"); n != rounds {
				t.Errorf("%d of %d messages that fit were sent back:\n%s", n, rounds, &server.Err)
			}
			server.Stop(t)
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F27",
		Done:    "datagrams and records of one byte more than the server has room for, each followed by one that fits",
		Count:   2 * rounds,
		Outcome: "each refused, counted and logged with both numbers; no byte of it sent back; the next one echoed whole",
	})
}

// The original client with other messages, over the two other types: each
// message returns as one message, an empty one too.
const pythonMessages = `
import os, socket, sys
kind, path = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX, {"datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}[kind])
if kind == "datagram":
    sock.bind("./python")
    os.chmod("./python", 0o666)
sock.connect(path)
for message in [sys.stdin.buffer.read(), b"", bytes(200000), b"last"]:
    sock.send(message)
    assert sock.recv(1 << 20) == message, message
sock.close()
if kind == "datagram":
    os.unlink("./python")
`

func TestStrangersAreServedInMessages(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pkg, kind string
		args      []string
	}{
		{"socat", "datagram", []string{"socat", "-t", "0", "-", "UNIX-SENDTO:s,bind=socat"}},
		{"socat", "seqpacket", []string{"socat", "-t", "60", "-", "UNIX-CONNECT:s,type=5"}},
		{"python3", "datagram", []string{"python3", "-c", pythonMessages, "datagram", "s"}},
		{"python3", "seqpacket", []string{"python3", "-c", pythonMessages, "seqpacket", "s"}},
	} {
		t.Run(tt.pkg+" "+tt.kind, func(t *testing.T) {
			t.Parallel()
			need(t, tt.args[0], tt.pkg)
			d := dir(t)
			server := serve(t, d, "--log-format", "plain", "--listen", tt.kind+":s")
			stranger := start(t, d, tt.args...)
			_, err := io.WriteString(stranger.In, message)
			check(t, err)
			if tt.pkg == "socat" {
				// It sees no end of datagrams, and would wait for more.
				stranger.Out.Await(t, 1, message)
			}
			check(t, stranger.In.Close())
			if status := stranger.Status(t); status != 0 {
				t.Errorf("exit status %d, output %q, error %q", status, &stranger.Out, &stranger.Err)
			}
			server.Stop(t) // its log is written beside its loop, and complete at its end
			wantWords(t, server.Err.String(), "received 'This is the message.  It will be repeated.'\nsending data back to the client\n")
		})
	}
}

func TestSenderWithoutANameIsNotAnswered(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	d := dir(t)
	server := serve(t, d, "--listen", "datagram:s")
	if status, _, stderr := run(t, d, message, "socat", "-u", "-", "UNIX-SENDTO:s"); status != 0 {
		t.Fatalf("exit status %d, error %q", status, stderr)
	}
	server.Err.Await(t, 1, "WRN cannot reply to a client without a name; it must bind one")
	if status, stdout, stderr := run(t, d, "", "client", "--connect", "datagram:s"); status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	server.Stop(t)
}

func TestDatagramSignalDrains(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--listen", "datagram:s", "--listen", "seqpacket:q", "--drain-timeout", "60s")
	client := start(t, d, "client", "--connect", "seqpacket:q", "--chunk", "5", "-")
	_, err := io.WriteString(client.In, "hello")
	check(t, err)
	client.Out.Await(t, 1, "hello")
	server.Signal(t, syscall.SIGTERM)
	awaitEmpty(t, d)
	_, err = io.WriteString(client.In, "again")
	check(t, err)
	check(t, client.In.Close())
	if status := client.Status(t); status != 0 || client.Out.String() != "helloagain" {
		t.Errorf("exit status %d, output %q, error %q", status, &client.Out, &client.Err)
	}
	if status := server.Status(t); status != 0 {
		t.Errorf("exit status %d after:\n%s", status, &server.Err)
	}
}

// The log's description of a datagram's sender, in every format.
func TestHostileDatagramClientIsEscapedInTheLog(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"plain", "console", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			server := serve(t, d, "--log-format", format, "--listen", "datagram:"+hostile)
			status, stdout, stderr := run(t, d, "", "client", "--log-format", format, "--connect", "datagram:./"+hostile, "--bind", hostile+"client", hostile)
			if status != 0 || stdout != hostile {
				t.Errorf("exit status %d, output %q", status, stdout)
			}
			server.Stop(t)
			wantPrintable(t, stderr)
			wantPrintable(t, server.Err.String())
			if format != "plain" {
				wantWords(t, server.Err.String(), "xaeclient")
			}
			if n := strings.Count(server.Err.String(), "\n"); n != 4 {
				t.Errorf("%d lines, not 4:\n%s", n, &server.Err)
			}
		})
	}
}
