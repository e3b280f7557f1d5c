package main_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestF1KilledServerStartsAgainAndNothingIsLost(t *testing.T) {
	const clients = 50
	kills := testkit.Count(10, 100)
	d := dir(t)
	addrs, flags := sockets(d)
	args := append([]string{"server", "--log-level", "warn", "--chunk", "4096"}, flags...)
	server := start(t, d, args...)
	f := launch(t, testkit.Seed(t), clients, addrs...)
	f.await(t, server)
	for range kills {
		server.Signal(t, syscall.SIGKILL)
		<-server.Ended
		server = start(t, d, args...)
		f.await(t, server)
	}
	sum := f.finish(t)
	if sum.resumed < int64(kills) {
		t.Errorf("only %d connections broke", sum.resumed)
	}
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F1",
		Done:    fmt.Sprintf("%d clients of all types transfer with retry; the server is killed, started again, and killed again once every client has got more back", clients),
		Count:   kills,
		Outcome: fmt.Sprintf("%d of %d restarts succeeded, and all clients came back each time; %v", kills, kills, sum),
	})
}

// With every kill the client gets more to send, and its input ends after the
// last kill.
func TestTransferThroughTenKillsIsByteIdentical(t *testing.T) {
	t.Parallel()
	const kills, lines = 10, 50_000
	for _, typ := range []string{"stream", "seqpacket", "datagram"} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			args := []string{"server", "--log-level", "warn", "--chunk", "65536", "--listen", typ + ":s"}
			server := start(t, d, args...)
			silence := "0s"
			if typ == "datagram" {
				silence = "300ms"
			}
			client := start(t, d, "client", "--retry", "60s", "--log-level", "warn", "--timeout", silence, "--chunk", "4096", "--connect", typ+":s", "-")
			sent := sha256.New()
			for kill := range kills + 1 {
				var part strings.Builder
				for line := range lines {
					fmt.Fprintf(&part, "%d.%d\n", kill, line)
				}
				written := make(chan error, 1)
				go func() {
					_, err := io.WriteString(io.MultiWriter(sent, client.In), part.String())
					written <- err
				}()
				if kill < kills {
					client.Out.Await(t, 1, fmt.Sprintf("\n%d.%d\n", kill, lines/10))
					server.Signal(t, syscall.SIGKILL)
					<-server.Ended
					server = start(t, d, args...)
				}
				check(t, <-written)
			}
			check(t, client.In.Close())
			if status := client.Status(t); status != 0 {
				t.Fatalf("exit status is %d: %s", status, &client.Err)
			}
			if back := sha256.Sum256([]byte(client.Out.String())); !bytes.Equal(back[:], sent.Sum(nil)) {
				t.Error("the echo differs from the bytes sent")
			}
			wantWords(t, client.Err.String(), "connecting again")
			server.Stop(t)
		})
	}
}
