package main_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/udsecho/udsecho/internal/testkit"
)

// talk sends words through a relay before an echo, and waits for the end.
func talk(t *testing.T, d string, relay *testkit.Process, words ...string) {
	t.Helper()
	conn := dialAt(t, d, "stream:r")
	for _, w := range words {
		_, err := io.WriteString(conn, w)
		check(t, err)
		_, err = io.ReadFull(conn, make([]byte, len(w)))
		check(t, err)
	}
	before, _ := relay.Err.Count("connection ended")
	check(t, conn.CloseWrite())
	_, err := io.ReadAll(conn)
	check(t, err)
	relay.Err.Await(t, before+1, "connection ended")
}

func echoAt(t *testing.T, d string) {
	serveAt(t, d, "stream:s", func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
}

func TestShowHex(t *testing.T) {
	t.Parallel()
	d := dir(t)
	echoAt(t, d)
	relay := forward(t, d, "stream:r", "stream:s", "--show", "hex")
	talk(t, d, relay, "hello\x1b[2J")
	relay.Terminate(t)
	got := regexp.MustCompile(`(?m)^[0-9:.]{15}`).ReplaceAllString(relay.Out.String(), "TIME")
	want := fmt.Sprintf(`TIME conn 1 opened uid %d gid %d pid %d to s
TIME conn 1 client -> target: 9 bytes
00000000  68 65 6c 6c 6f 1b 5b 32  4a                       |hello.[2J|
TIME conn 1 client <- target: 9 bytes
00000000  68 65 6c 6c 6f 1b 5b 32  4a                       |hello.[2J|
TIME conn 1 client -> target: end
TIME conn 1 client <- target: end
`, os.Geteuid(), os.Getegid(), os.Getpid())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestShowHexHasColoursAtATerminal(t *testing.T) {
	t.Parallel()
	d := dir(t)
	echoAt(t, d)
	typist, tty := terminal(t)
	relay := testkit.Prepare(t, d, "client", "forward", "--listen", "r", "--connect", "s", "--show", "hex")
	relay.Cmd.Stdout = tty
	relay.Start(t)
	relay.Err.Await(t, 1, "waiting for a ")
	talk(t, d, relay, "hello")
	relay.Terminate(t)
	buf := make([]byte, 10_000)
	n, err := typist.Read(buf)
	check(t, err)
	wantWords(t, string(buf[:n]), "\x1b[32m", "\x1b[36m", "\x1b[0m")
}

func TestShowJSON(t *testing.T) {
	t.Parallel()
	d := dir(t)
	echoAt(t, d)
	relay := forward(t, d, "stream:r", "stream:s", "--show", "json")
	talk(t, d, relay, "hello", "you")
	relay.Terminate(t)
	var got []string
	for line := range strings.Lines(relay.Out.String()) {
		var o struct {
			Time             time.Time
			Conn             int
			Event, Direction string
			Size             int
			Bytes            string
			UID, GID, PID    *int
		}
		check(t, json.Unmarshal([]byte(line), &o))
		payload, err := base64.StdEncoding.DecodeString(o.Bytes)
		check(t, err)
		if o.UID == nil || *o.UID != os.Geteuid() || o.PID == nil || *o.PID != os.Getpid() || time.Since(o.Time) > time.Hour {
			t.Errorf("%s", line)
		}
		got = append(got, fmt.Sprintln(o.Conn, o.Event, o.Direction, o.Size, string(payload)))
	}
	if diff := cmp.Diff("1 opened  0 \n1 data to target 5 hello\n1 data to client 5 hello\n1 data to target 3 you\n1 data to client 3 you\n1 end to target 0 \n1 end to client 0 \n", strings.Join(got, "")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestShowLeavesAFileAlone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/f.pcapng", []byte("precious"), 0o600))
	status, _, stderr := run(t, d, "", "forward", "--listen", "r", "--connect", "s", "--show", "f.pcapng")
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, "client: --show f.pcapng: the file exists, and is left alone; choose another name\n")
	wantFiles(t, d, "f.pcapng")
	if text, err := os.ReadFile(d + "/f.pcapng"); string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}

// tshark decodes these fields of each packet in a capture.
func tshark(t *testing.T, file, filter string, fields ...string) string {
	t.Helper()
	testkit.StressOnly(t)
	need(t, "tshark", "tshark")
	args := []string{"-n", "-r", file, "-Y", filter, "-T", "fields"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	out, err := exec.CommandContext(t.Context(), "tshark", args...).Output()
	check(t, err)
	return string(out)
}

func TestShowHTTPToTshark(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		_, _ = io.ReadFull(conn, make([]byte, len("GET /what HTTP/1.1\r\nHost: here\r\n\r\n")))
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 100_000, strings.Repeat("x", 100_000))
	})
	relay := forward(t, d, "stream:r", "stream:s", "--show", "f.pcapng")
	conn := dialAt(t, d, "stream:r")
	_, err := io.WriteString(conn, "GET /what HTTP/1.1\r\nHost: here\r\n\r\n")
	check(t, err)
	_, err = io.ReadAll(conn)
	check(t, err)
	check(t, conn.Close())
	relay.Terminate(t)
	info, err := os.Stat(d + "/f.pcapng")
	check(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("the mode is %v", info.Mode())
	}
	got := tshark(t, d+"/f.pcapng", "http", "_ws.col.Protocol", "http.request.method", "http.request.uri", "http.host", "http.response.code", "http.content_length")
	if want := "HTTP\tGET\t/what\there\t\t\nHTTP\t\t\t\t200\t100000\n"; got != want {
		t.Errorf("tshark printed %q", got)
	}
	if got := tshark(t, d+"/f.pcapng", "tcp.analysis.flags", "frame.number", "tcp.analysis.flags"); got != "" {
		t.Errorf("the stream is not sound: %q", got)
	}
	wantWords(t, tshark(t, d+"/f.pcapng", "frame.comment", "frame.comment"), fmt.Sprintf("opened uid %d gid %d pid %d to s", os.Geteuid(), os.Getegid(), os.Getpid()))
}

// pieces counts the pieces in a capture, and how many it reports as lost.
func pieces(t *testing.T, f io.Reader) (n int, lost uint64) {
	t.Helper()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	check(t, err)
	for {
		packet, _, options, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return n, lost
		}
		check(t, err)
		tcp, ok := gopacket.NewPacket(packet, layers.LayerTypeIPv4, gopacket.Default).TransportLayer().(*layers.TCP)
		if !ok {
			t.Fatalf("a packet is not TCP: %x", packet)
		}
		n += len(tcp.Payload)
		if options.DropCount != nil {
			lost += *options.DropCount
		}
	}
}

// lostAtLast returns how many pieces a relay reported as lost at its end.
func lostAtLast(t *testing.T, relay *testkit.Process) (n uint64) {
	t.Helper()
	found := regexp.MustCompile(`the record lacks (\d+) pieces that passed`).FindStringSubmatch(relay.Err.String())
	if found == nil {
		t.Fatalf("nothing is said to be lost:\n%s", &relay.Err)
	}
	n, err := strconv.ParseUint(found[1], 10, 64)
	check(t, err)
	return n
}

// A full disk, a reader that has ended, and one that does not read.
func TestF49RelayContinuesWithoutItsRecord(t *testing.T) {
	t.Parallel()
	const rounds = 100
	want := sumOf(t, stream(5, 100_000))
	pass := func(t *testing.T, d string) {
		t.Helper()
		for range rounds {
			conn := dialAt(t, d, "stream:r")
			if got, err := exchange(conn, stream(5, 100_000)); err != nil || got != want {
				t.Fatalf("received other bytes: %v", err)
			}
			check(t, conn.Close())
		}
	}
	t.Run("disk full", func(t *testing.T) {
		testkit.NeedNamespace(t, "-rm")
		d := dir(t)
		echoAt(t, d)
		check(t, os.Mkdir(d+"/m", 0o755))
		// The relay has its own mount namespace, so the mount ends with the
		// relay. There is room for 192 KiB, and later for everything that the
		// queue may hold.
		relay := testkit.Start(t, d, "unshare", "-rm", "sh", "-c", `mount -t tmpfs -o size=64m none m && head -c 65344k /dev/zero >m/other && exec "$0" "$@"`,
			testkit.Program("client"), "forward", "--listen", "r", "--connect", "s", "--show", "m/f.pcapng")
		relay.Err.Await(t, 1, "waiting for a ")
		pass(t, d)
		relay.Err.Await(t, 1, "cannot write the record: write m/f.pcapng: no space left on device; relaying continues")
		inside := fmt.Sprintf("/proc/%d/root%s/m/", relay.Pid(), d)
		f, err := os.Open(inside + "f.pcapng") // stays open after the relay's end
		check(t, err)
		defer func() { _ = f.Close() }()
		check(t, os.Remove(inside+"other"))
		testkit.Await(t, func() error { // until the queue is written, or lost
			talk(t, d, relay, "there is room again")
			info, err := f.Stat()
			check(t, err)
			text, err := io.ReadAll(io.NewSectionReader(f, max(info.Size()-10_000, 0), 10_000))
			if err == nil && !strings.Contains(string(text), "there is room again") {
				err = errors.New("the record does not continue")
			}
			return err
		})
		relay.Terminate(t)
		_, lost := pieces(t, f)
		if said := lostAtLast(t, relay); lost != said {
			t.Errorf("the record reports %d lost pieces, the log %d", lost, said)
		}
	})
	t.Run("reader gone", func(t *testing.T) {
		d := dir(t)
		echoAt(t, d)
		relay := testkit.Prepare(t, d, "client", "forward", "--listen", "r", "--connect", "s", "--show", "hex")
		reader, writer, err := os.Pipe()
		check(t, err)
		check(t, reader.Close())
		relay.Cmd.Stdout = writer
		relay.Start(t)
		check(t, writer.Close())
		relay.Err.Await(t, 1, "waiting for a ")
		pass(t, d)
		if status := relay.Terminate(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
		wantWords(t, relay.Err.String(), "cannot write the record: write /dev/stdout: broken pipe; relaying continues")
		if lost := lostAtLast(t, relay); lost < 4*rounds {
			t.Errorf("%d pieces are lost", lost)
		}
	})
	t.Run("reader does not read", func(t *testing.T) {
		d := dir(t)
		echoAt(t, d)
		relay := testkit.Prepare(t, d, "client", "forward", "--listen", "r", "--connect", "s", "--show", "json")
		reader, writer, err := os.Pipe()
		check(t, err)
		defer func() { _ = reader.Close() }()
		relay.Cmd.Stdout = writer
		relay.Start(t)
		check(t, writer.Close())
		relay.Err.Await(t, 1, "waiting for a ")
		pass(t, d) // 20 MB, of which the queue holds 16 MiB
		full := relay.StatusNumber(t, "VmHWM")
		for range 3 {
			pass(t, d)
		}
		if grown := (relay.StatusNumber(t, "VmHWM") - full) << 10; grown > 3*2*rounds*100_000/2 {
			t.Errorf("it grew by %d bytes, half of what passed after the queue was full", grown)
		}
		if status := relay.Terminate(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
		lostAtLast(t, relay)
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F49", Done: "a record on a file system that is full and has room again; a record into a pipe whose reader is gone; one whose reader does not read", Count: 5 * rounds,
		Outcome: "every byte relayed; the log reports the loss while it happens and at the end, and so does the record, which stays readable and continues when there is room",
	})
}

// The capture contains all parts of a PostgreSQL login.
func TestShowPostgreSQLToTshark(t *testing.T) {
	testkit.StressOnly(t)
	testkit.NeedRoot(t, "to become the user postgres")
	t.Parallel()
	programs, _ := exec.Command("sh", "-c", "ls -d /usr/lib/postgresql/*/bin").Output()
	bin := strings.TrimSpace(string(programs))
	if bin == "" {
		testkit.Missing(t, "PostgreSQL", "install the package postgresql")
	}
	need(t, "psql", "postgresql-client")
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	as := func(script string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-ec", script)
	}
	init := as(fmt.Sprintf("cd %s; echo secret >pw; %s/initdb -D data -U postgres -A scram-sha-256 --pwfile=pw -N >init.log 2>&1; mkdir run", d, bin))
	if out, err := init.CombinedOutput(); err != nil {
		log, _ := os.ReadFile(d + "/init.log")
		t.Fatalf("%v\n%s%s", err, out, log)
	}
	server := start(t, d, "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", bin+"/postgres", "-D", d+"/data", "-k", d+"/run", "-c", "listen_addresses=", "-c", "fsync=off")
	server.Err.Await(t, 1, "ready to accept connections")
	check(t, os.Mkdir(d+"/r", 0o755))
	relay := forward(t, d, "stream:r/.s.PGSQL.5432", "stream:run/.s.PGSQL.5432", "--show", "f.pcapng", "--show-port", "5432")
	psql := exec.CommandContext(t.Context(), "psql", "-h", d+"/r", "-U", "postgres", "-Atc", "SELECT 6*7")
	psql.Env = append(os.Environ(), "PGPASSWORD=secret")
	out, err := psql.CombinedOutput()
	if err != nil || string(out) != "42\n" {
		t.Errorf("psql printed %q, %v", out, err)
	}
	relay.Terminate(t)
	got := tshark(t, d+"/f.pcapng", "pgsql", "_ws.col.Protocol", "pgsql.type", "pgsql.parameter_value", "pgsql.auth.sasl.mech", "pgsql.query", "pgsql.val.data")
	wantWords(t, got, "PGSQL\tStartup message\tpostgres,postgres,psql", "SASL", "Simple query", "SELECT 6*7", "Data row")
	t.Logf("tshark:\n%s", got)
	server.Signal(t, os.Interrupt)
	if status := server.Status(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}
