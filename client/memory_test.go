package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

// A peer that reads and never answers must not fill the memory of a client
// that keeps the bytes not yet echoed.
func TestF40PeerThatNeverAnswersDoesNotFillTheMemory(t *testing.T) {
	t.Parallel()
	const (
		offered = 600 << 20
		kept    = 8 << 20
	)
	// try offers bytes to a peer, and returns the client's peak in KiB, without the
	// race detector, which uses several times the memory.
	try := func(offered int64, kind, words string, args ...string) (peak int) {
		t.Helper()
		d := dir(t)
		l, err := net.Listen(networks[kind], d+"/s")
		check(t, err)
		in, err := os.Create(d + "/in")
		check(t, err)
		check(t, in.Truncate(offered)) // a hole uses no disk space
		p := testkit.Prepare(t, d, append([]string{testkit.Plain(t, "client"), "--retry", "30s", "--timeout", "1s", "--connect", kind + ":s", "--chunk", "65536", "-"}, args...)...)
		p.Cmd.Stdin = in
		p.Start(t)
		conn := accepted(t, l)
		read, seen := 0, 0
		for buf := make([]byte, 64<<10); ; {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			if read += n; read-seen >= 1<<20 {
				seen = read
				peak = max(peak, p.StatusNumber(t, "VmHWM"))
			}
		}
		if status := p.Status(t); status != 1 {
			t.Errorf("exit status %d", status)
		}
		wantWords(t, p.Err.String(), words)
		if read > kept || seen == 0 {
			t.Errorf("%s: %d bytes were sent, and %d may be kept", kind, read, kept)
		}
		check(t, errors.Join(l.Close(), in.Close()))
		return peak
	}
	peak, count := 0, 0
	for _, tt := range [][]string{{"stream", "no answer for 1s: received 0 of "}, {"seqpacket", "no answer for 1s: received 0 messages", "--window", "1000"}} {
		half, whole := try(offered/2, tt[0], tt[1], tt[2:]...), try(offered, tt[0], tt[1], tt[2:]...)
		if grown := (whole - half) << 10; grown > offered/8 {
			t.Errorf("%s: with twice the bytes the client grows by %d", tt[0], grown)
		}
		peak = max(peak, whole)
		count++
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F40", Done: "600 MiB for a peer that reads and never answers, with `--retry`, over stream and seqpacket", Count: count,
		Outcome: fmt.Sprintf("8 MiB sent, then the transfer waits, and `--timeout` ends it; %d MiB resident at most, of the 64 MiB that the stack's client has", peak>>10),
	})
}
