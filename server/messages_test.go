package main_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

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

// loopback returns a HOST:PORT that is not in use: all of 127.0.0.0/8 is this
// host.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d:7000", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
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
