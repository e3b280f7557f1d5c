package main_test

import (
	"fmt"
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
