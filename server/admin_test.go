package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/testkit"
)

// get requests a page from the admin socket at path.
func get(t *testing.T, path, what string) string {
	t.Helper()
	body, err := tryGet(t, path, what)
	check(t, err)
	return body
}

func tryGet(t *testing.T, path, what string) (string, error) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	response, err := client.Get("http://admin" + what)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", what, response.Status)
	}
	return string(body), err
}

// A status is the content of /status.
type status struct {
	Identity                               string
	Connections, Accepted, Messages, Bytes int
	RepliesWaiting                         int `json:"replies_waiting"`
	RepliesDropped                         int `json:"replies_dropped"`
	LogLinesDropped                        int `json:"log_lines_dropped"`
	Refused                                map[string]int
	UptimeSeconds                          int `json:"uptime_seconds"`
	Build                                  map[string]string
}

func statusOf(t *testing.T, path string) (s status) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(get(t, path, "/status")))
	decoder.DisallowUnknownFields()
	check(t, decoder.Decode(&s))
	return s
}

// awaitStatus waits for a status that ok accepts.
func awaitStatus(t *testing.T, path string, ok func(status) bool) (s status) {
	t.Helper()
	testkit.Await(t, func() error {
		if s = statusOf(t, path); !ok(s) {
			return fmt.Errorf("the status stays %+v", s)
		}
		return nil
	})
	return s
}

// metric returns one number of /metrics.
func metric(t *testing.T, metrics, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(metrics)
	if m == nil {
		t.Fatalf("no %s in\n%s", name, metrics)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	check(t, err)
	return n
}

func TestAdminShowsWhatTheServerDoes(t *testing.T) {
	t.Parallel()
	need(t, "curl", "curl")
	need(t, "nc.openbsd", "netcat-openbsd")
	d := dir(t)
	server := serve(t, d, "--admin", "stream:admin", "--mode", "0666", "--max-connections", "1",
		"--listen", "s", "--listen", "datagram:d")
	start(t, d, "client", "--connect", "s", "twelve bytes").WantStatus(t, 0)
	start(t, d, "client", "--connect", "datagram:d", "four").WantStatus(t, 0)
	awaitStatus(t, d+"/admin", func(s status) bool { return s.Connections == 0 })
	held := connect(t, "unix", d+"/s")
	server.Err.Await(t, 2, "connection from")
	start(t, d, "client", "--connect", "s").WantStatus(t, 1) // one too many
	nameless, err := net.Dial("unixgram", d+"/d")
	check(t, err)
	_, err = nameless.Write(nil)
	check(t, errors.Join(err, nameless.Close()))

	got := awaitStatus(t, d+"/admin", func(s status) bool { return s.Refused["nameless"] == 1 })
	if got.Connections != 1 || got.Accepted != 2 || got.Messages != 3 || got.Bytes != 16 || got.RepliesWaiting != 0 ||
		got.Refused["connections"] != 1 || len(got.Refused) != 10 || got.Build["version"] != cli.Version || !strings.HasPrefix(got.Build["go"], "go") {
		t.Errorf("%+v", got)
	}
	for _, tt := range []struct {
		args  []string
		stdin string
	}{
		{[]string{"curl", "-sS", "--unix-socket", "admin", "http://admin/metrics"}, ""},
		{[]string{"nc.openbsd", "-U", "admin"}, "GET /metrics HTTP/1.0\r\n\r\n"},
	} {
		status, metrics, stderr := run(t, d, tt.stdin, tt.args...)
		if status != 0 {
			t.Fatalf("%q: exit status %d, error %q", tt.args, status, stderr)
		}
		for name, want := range map[string]float64{
			"udsecho_connections": 1, "udsecho_connections_accepted_total": 2, "udsecho_messages_received_total": 3,
			"udsecho_bytes_received_total": 16, "udsecho_replies_waiting": 0,
			`udsecho_refused_total{cause="connections"}`: 1, `udsecho_refused_total{cause="nameless"}`: 1,
			`udsecho_refused_total{cause="idle"}`: 0,
		} {
			if got := metric(t, metrics, name); got != want {
				t.Errorf("%s is %v, not %v", name, got, want)
			}
		}
		wantWords(t, metrics, "go_goroutines ", "process_resident_memory_bytes ", "process_open_fds ", "go_build_info{")
	}
	check(t, held.Close())
	server.Stop(t)
}

// Clients that fill the admin socket, or are slow there, make others wait there
// until one of them is disconnected, and echo clients not at all.
func TestAdminHasLimitsOfItsOwn(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--admin", "admin", "--log-level", "debug")
	var slow []net.Conn
	for range 16 {
		conn := connect(t, "unix", d+"/admin")
		_, err := io.WriteString(conn, "GET /status HTTP/1.1\r\nHost: ")
		check(t, err)
		slow = append(slow, conn)
	}
	clientEchoes(t, d)
	statusOf(t, d+"/admin")
	ended := 0
	for _, conn := range slow {
		check(t, conn.SetDeadline(time.Now().Add(time.Millisecond)))
		if _, err := conn.Read(make([]byte, 1000)); !errors.Is(err, os.ErrDeadlineExceeded) {
			ended++
		}
	}
	if ended == 0 {
		t.Error("a seventeenth is served beside sixteen others")
	}
	for _, conn := range slow {
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		_, err := io.ReadAll(conn)
		check(t, err)
	}

	conn := connect(t, "unix", d+"/admin")
	_, _ = conn.Write([]byte("GET /status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10)))
	answer, _ := io.ReadAll(conn)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 431 ")) {
		t.Errorf("a header of 64 KiB is answered by %q", answer)
	}
	server.Stop(t)
}

// Clients that keep their connections, and always have another request, make no
// other client wait for long.
func TestF63AdminConnectionsThatAreKeptUp(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--admin", "admin")
	const clients = 16
	var ended sync.WaitGroup
	answered := make(chan struct{}, clients)
	for range clients {
		conn := connect(t, "unix", d+"/admin")
		ended.Go(func() {
			answers := bufio.NewReader(conn)
			for first := true; ; first = false {
				_, _ = io.WriteString(conn, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
				answer, err := http.ReadResponse(answers, nil)
				if err != nil {
					return // the server has closed the connection
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				_ = answer.Body.Close()
				if first {
					answered <- struct{}{}
				}
			}
		})
	}
	for range clients {
		<-answered
	}
	if s := statusOf(t, d+"/admin"); s.Build == nil {
		t.Errorf("the status is %+v", s)
	}
	ended.Wait()
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F63", Done: "as many clients as the admin socket serves at once keep their connections, and send request after request; another one comes", Count: clients,
		Outcome: "each connection ends after its answer, and the other client is served",
	})
	server.Stop(t)
}

// The errors of package http are events like any other.
func TestAdminWithoutDescriptorsWarnsInTheLogsFormat(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--admin", "admin", "--log-format", "json")
	statusOf(t, d+"/admin") // the descriptors that it needs are open
	lift := limitFiles(t, server, 3)
	conn := connect(t, "unix", d+"/admin")
	server.Err.Await(t, 1, "admin: http: Accept error")
	lift()
	statusOf(t, d+"/admin")
	check(t, conn.Close())
	server.Stop(t)
	wantJSON(t, server.Err.String())
}

func TestF46RemovedAdminSocketIsRecreated(t *testing.T) {
	t.Parallel()
	rounds := testkit.Count(2, 10)
	d := dir(t)
	server := serve(t, d, "--admin", "admin", "--mode", "0666")
	took := time.Duration(0)
	for i := range rounds {
		// A request that has begun is answered over its connection.
		conn := connect(t, "unix", d+"/admin")
		_, err := io.WriteString(conn, "GET /status HTTP/1.1\r\nHost: x\r\n")
		check(t, err)
		if i%2 == 0 {
			check(t, os.Remove(d+"/admin"))
		} else {
			check(t, errors.Join(os.Rename(d+"/admin", d+"/moved"), os.Remove(d+"/.admin.lock")))
		}
		began := time.Now()
		server.Err.Await(t, i+1, "admin was removed: listening again")
		statusOf(t, d+"/admin")
		took = max(took, time.Since(began))
		if info, err := os.Stat(d + "/admin"); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its mode is %v, %v", info, err)
		}
		_, err = io.WriteString(conn, "Connection: close\r\n\r\n")
		check(t, err)
		answer, err := io.ReadAll(conn)
		check(t, err)
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
			t.Errorf("who had connected is answered %q", answer)
		}
		if i%2 == 1 {
			if _, err := net.Dial("unix", d+"/moved"); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("the old socket is still served: %v", err)
			}
			check(t, os.Remove(d+"/moved"))
		}
	}
	before := descriptors(t, server)

	// It does not fight for the path, and the echo continues.
	check(t, os.WriteFile(d+"/admin~", []byte("precious"), 0o600))
	check(t, os.Rename(d+"/admin~", d+"/admin"))
	server.Err.Await(t, 1, "the admin socket is gone: accept unix admin: not a socket: ")
	if text, err := os.ReadFile(d + "/admin"); err != nil || string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	clientEchoes(t, d)
	if n := descriptors(t, server); n >= before {
		t.Errorf("%d descriptors are open, and were %d", n, before)
	}
	check(t, os.Remove(d+"/admin"))
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F46", Done: "the admin socket's file removed or moved, its lock too, while a request is half sent; at last something else put in its place", Count: rounds,
		Outcome: fmt.Sprintf("recreated each time, in %.1f s at most, mode 0600; the request answered; the file put in its place was left alone, with a warning, and the echo continued", took.Seconds()),
	})
}
