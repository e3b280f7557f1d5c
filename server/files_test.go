package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/testkit"
)

// askSum asks for the sum of what descriptors show, and returns the answer.
func askSum(t *testing.T, conn int, fds ...int) string {
	t.Helper()
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	check(t, unix.Sendmsg(conn, []byte("sum 1"), rights, nil, unix.MSG_NOSIGNAL))
	return answerOf(t, conn)
}

func answerOf(t *testing.T, conn int) string {
	t.Helper()
	answer := make([]byte, 1000)
	n, err := unix.Read(conn, answer)
	check(t, err)
	return string(answer[:n])
}

func TestF12MoreDescriptorsThanThereIsRoomForAreClosed(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--listen", "files:f")
	fds := nulls(t)
	wantHealthy(t, d, "files:f")
	before := descriptors(t, server)
	for i := range 1000 {
		conn := rawClient(t, unix.SOCK_SEQPACKET, d+"/f")
		many := fds[:[]int{253, 2, 0, 1}[i%4]] // the last one is a device
		if answer := askSum(t, conn, many...); !strings.HasPrefix(answer, "error ") {
			t.Fatalf("the answer to %d descriptors is %q", len(many), answer)
		}
		check(t, unix.Close(conn))
	}
	wantHealthy(t, d, "files:f")
	awaitDescriptors(t, server, before)
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F12", Done: "requests at `files:` with 253 descriptors, with 2, with none, with one of a device", Count: 1000,
		Outcome: "all closed, each sender got the reason; the server's count of descriptors is what it was",
	})
}

// A server that may open no more files logs that, and recovers.
func TestF13DescriptorsAtTheLimitOfOpenFiles(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--listen", "files:f")
	conn := rawClient(t, unix.SOCK_SEQPACKET, d+"/f")
	check(t, os.WriteFile(d+"/x", nil, 0o600))
	file, err := os.Open(d + "/x")
	check(t, err)
	check(t, os.Remove(d+"/x"))
	if answer := askSum(t, conn, int(file.Fd())); !strings.HasPrefix(answer, "sum 1 0 ") {
		t.Errorf("at first: %s", answer)
	}
	const rounds = 20
	for range rounds {
		lift := limitFiles(t, server, 3)
		if answer := askSum(t, conn, int(file.Fd())); answer != "error the server has reached its limit of open files; try again later" {
			t.Errorf("at the limit: %s", answer)
		}
		lift()
		check(t, unix.Close(conn))
		conn = rawClient(t, unix.SOCK_SEQPACKET, d+"/f")
		if answer := askSum(t, conn, int(file.Fd())); !strings.HasPrefix(answer, "sum 1 0 ") {
			t.Errorf("later: %s", answer)
		}
	}
	check(t, unix.Close(conn))
	check(t, file.Close())
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F13", Done: "a file handed over to a server that may open no more", Count: rounds,
		Outcome: "each time an error that says so, and once the limit is lifted the next is read",
	})
}

// The descriptors lie unread in the connections that the server closes.
func TestF53FilesConnectionsWhoseClosingHangs(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--listen", "files:f", "--listen", "s", "--admin", "a")
	goOn := server.PauseAlone(t)
	const n = 200
	for range n {
		conn := rawClient(t, unix.SOCK_SEQPACKET, d+"/f")
		check(t, unix.Sendmsg(conn, []byte("nonsense"), nil, nil, 0))
		check(t, errors.Join(handOver(t, conn, lingering(t)), unix.Close(conn)))
	}
	goOn()
	awaitStatus(t, d+"/a", func(s status) bool { return s.Refused["request"] == n })
	wantHealthy(t, d, "files:f", "s")
	if threads := server.StatusNumber(t, "Threads"); threads >= 64 { // as many as compose.yaml allows
		t.Errorf("the server has %d threads", threads)
	}
	if s := statusOf(t, d+"/a"); s.Connections == 0 {
		t.Error("no connection whose closing hangs is counted as open")
	}
	server.Stop(t)
}

func TestF59FilesClientsOfAServerThatWasStoppedAreNotIdle(t *testing.T) {
	t.Parallel()
	d := dir(t)
	// The timeout is shorter than the stop, which must not count.
	server := serve(t, d, "--listen", "files:f", "--idle-timeout", "4s", "--admin", "a")
	const n = 30
	var conns []int
	for range n {
		conns = append(conns, rawClient(t, unix.SOCK_SEQPACKET, d+"/f"))
	}
	awaitStatus(t, d+"/a", func(s status) bool { return s.Connections == n })
	goOn := server.Pause(t)
	<-time.After(6 * time.Second) // this is the time that the fault takes
	goOn()
	f, err := os.Open("files_test.go")
	check(t, err)
	for _, conn := range conns {
		check(t, unix.Sendmsg(conn, []byte("sum 1"), unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL))
	}
	for _, conn := range conns {
		if answer := answerOf(t, conn); !strings.HasPrefix(answer, "sum 1 ") {
			t.Errorf("the answer is %q", answer)
		}
		check(t, unix.Close(conn))
	}
	check(t, f.Close())
	server.Stop(t)
}

// 100 clients of one user always have a large file to be read. Files of another
// user, and those of the health check, are read after few of their turns. Each
// answer takes a turn or two, so the answers in between are counted, in the log.
func TestF56FilesOfOneUserDoNotStopAnothers(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to be other users")
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	server := testkit.Prepare(t, d, "server", "--listen", "files:f", "--mode", "0666", "--log-format", "json", "--log-level", "debug")
	server.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10001, Gid: 10001}}
	server.Cmd.Env = append(server.Cmd.Env, "GOMAXPROCS=2") // so that one file is read at a time
	server.Start(t)
	serving(t, server)
	f, err := files.Seal("large", bytes.NewReader(make([]byte, 16<<20)))
	check(t, err)
	const clients = 100
	var ended sync.WaitGroup
	var conns []int
	for range clients {
		conn := rawClient(t, unix.SOCK_SEQPACKET, d+"/f")
		conns = append(conns, conn)
		ended.Go(func() {
			answer := make([]byte, 1000)
			for n := 1; n > 0; n, _ = unix.Read(conn, answer) {
				_ = unix.Sendmsg(conn, []byte("sum 1"), unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL)
			}
		})
	}
	server.Err.Await(t, clients, `"message":"received 'sum 1'"`)
	check(t, os.WriteFile(d+"/small", []byte("small"), 0o644))
	for range 5 {
		startAs(t, 10002, d, "client", "send-file", "--connect", "files:f", "small").WantStatus(t, 0)
		startAs(t, 10001, d, "server", "healthcheck", "--listen", "files:f", "--timeout", patience.String()).WantStatus(t, 0)
	}
	for _, conn := range conns {
		check(t, unix.Shutdown(conn, unix.SHUT_RDWR))
	}
	ended.Wait()
	for _, conn := range conns {
		check(t, unix.Close(conn))
	}
	check(t, errors.Join(f.Close(), os.Remove(d+"/small")))
	server.Stop(t)

	sent, since, served, most := 0, map[int]int{}, 0, 0
	others := map[int]bool{}
	for line := range strings.Lines(server.Err.String()) {
		var event struct {
			Conn, UID int
			Message   string
		}
		check(t, json.Unmarshal([]byte(line), &event))
		what, _, _ := strings.Cut(event.Message, " ")
		switch {
		case event.Message == "connection from":
			others[event.Conn] = event.UID != 0
		case what == "sending" && others[event.Conn]:
			served++
			most = max(most, sent-since[event.Conn])
		case what == "sending":
			sent++
		case what == "received" && others[event.Conn]:
			since[event.Conn] = sent
		}
	}
	if served != 10 || most > 10 {
		t.Errorf("%d files of others were read, each after up to %d answers to the user of the %d clients", served, most, clients)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F56", Done: "100 clients of one user hand over a file of 16 MiB again and again; another user hands over a small file, and the health check runs", Count: 10,
		Outcome: fmt.Sprintf("each is answered, after at most %d of the %d answers that the one user got", most, sent),
	})
}
