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
