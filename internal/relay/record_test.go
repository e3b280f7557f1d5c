package relay_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/udsecho/udsecho/internal/testkit"
)

// lostIn returns how many pieces a capture reports as lost.
func lostIn(t testing.TB, f io.Reader) (lost uint64) {
	t.Helper()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	check(t, err)
	for {
		packet, _, options, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return lost
		}
		check(t, err)
		if _, ok := gopacket.NewPacket(packet, layers.LayerTypeIPv4, gopacket.Default).TransportLayer().(*layers.TCP); !ok {
			t.Fatalf("a packet is not TCP: %x", packet)
		}
		if options.DropCount != nil {
			lost += *options.DropCount
		}
	}
}

// lostAtLast terminates a relay and returns how many pieces it reported as lost
// then.
func lostAtLast(t testing.TB, relay *testkit.Process) uint64 {
	t.Helper()
	if status := relay.Terminate(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
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
	const rounds, size = 100, 100_000
	// recording starts a relay that shows what passes in a form, before an echo.
	recording := func(t *testing.T, form string, stdout *os.File, words ...string) (d string, relay *testkit.Process) {
		d = dir(t)
		serveAt(t, d, "stream:s", echo)
		relay = testkit.Prepare(t, d, append(words, testkit.Program("uds"), "forward", "--listen", "r", "--connect", "s", "--show", form)...)
		if stdout != nil {
			relay.Cmd.Stdout = stdout
		}
		relay.Start(t)
		_ = stdout.Close()
		relay.Err.Await(t, 1, "waiting for a ")
		return d, relay
	}
	pass := func(t *testing.T, d string) {
		t.Helper()
		for range rounds {
			conn := dialAt(t, d, "stream:r")
			check(t, exchange(conn, random(5, size), random(5, size)))
			check(t, conn.Close())
		}
	}
	t.Run("disk full", func(t *testing.T) {
		testkit.NeedNamespace(t, "-rm")
		// The relay has its own mount namespace, so the mount ends with the
		// relay. There is room for 192 KiB, and later for everything that the
		// queue may hold.
		d, relay := recording(t, "m/f.pcapng", nil, "unshare", "-rm", "sh", "-c",
			`mkdir m && mount -t tmpfs -o size=64m none m && head -c 65344k /dev/zero >m/other && exec "$0" "$@"`)
		pass(t, d)
		relay.Err.Await(t, 1, "cannot write the record: write m/f.pcapng: no space left on device; relaying continues")
		inside := fmt.Sprintf("/proc/%d/root%s/m/", relay.Pid(), d)
		f, err := os.Open(inside + "f.pcapng") // stays open after the relay's end
		check(t, err)
		defer func() { _ = f.Close() }()
		check(t, os.Remove(inside+"other"))
		testkit.Await(t, func() error { // until the queue is written, or lost
			wantEcho(t, dialAt(t, d, "stream:r"), "there is room again")
			info, err := f.Stat()
			check(t, err)
			text, err := io.ReadAll(io.NewSectionReader(f, max(info.Size()-10_000, 0), 10_000))
			if err == nil && !strings.Contains(string(text), "there is room again") {
				err = errors.New("the record does not continue")
			}
			return err
		})
		logged := lostAtLast(t, relay)
		if lost := lostIn(t, f); lost != logged {
			t.Errorf("the record reports %d lost pieces, the log %d", lost, logged)
		}
	})
	t.Run("reader gone", func(t *testing.T) {
		reader, writer, err := os.Pipe()
		check(t, errors.Join(err, reader.Close()))
		d, relay := recording(t, "hex", writer)
		pass(t, d)
		if lost := lostAtLast(t, relay); lost < 4*rounds {
			t.Errorf("%d pieces are lost", lost)
		}
		wantWords(t, relay.Err.String(), "cannot write the record: write /dev/stdout: broken pipe; relaying continues")
	})
	t.Run("reader does not read", func(t *testing.T) {
		reader, writer, err := os.Pipe()
		check(t, err)
		defer func() { _ = reader.Close() }()
		d, relay := recording(t, "json", writer)
		pass(t, d) // 20 MB, of which the queue holds 16 MiB
		full := relay.StatusNumber(t, "VmHWM")
		for range 3 {
			pass(t, d)
		}
		if grown := (relay.StatusNumber(t, "VmHWM") - full) << 10; grown > 3*2*rounds*size/2 {
			t.Errorf("it grew by %d bytes, half of what passed after the queue was full", grown)
		}
		lostAtLast(t, relay)
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F49", Done: "a record on a file system that is full and has room again; a record into a pipe whose reader is gone; one whose reader does not read", Count: 5 * rounds,
		Outcome: "every byte relayed; the log reports the loss while it happens and at the end, and so does the record, which stays readable and continues when there is room",
	})
}

// tshark decodes these fields of each packet in a capture.
func tshark(t *testing.T, file, filter string, fields ...string) string {
	t.Helper()
	args := []string{"-n", "-r", file, "-Y", filter, "-T", "fields"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	out, err := exec.CommandContext(t.Context(), "tshark", args...).Output()
	check(t, err)
	return string(out)
}

func TestShowHTTPToTshark(t *testing.T) {
	testkit.StressOnly(t)
	t.Parallel()
	need(t, "tshark", "tshark")
	d := dir(t)
	const request = "GET /what HTTP/1.1\r\nHost: here\r\n\r\n"
	serveAt(t, d, "stream:s", func(conn connection) {
		_, _ = io.ReadFull(conn, make([]byte, len(request)))
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 100_000, strings.Repeat("x", 100_000))
	})
	relay := forward(t, d, "stream:r", "stream:s", "--show", "f.pcapng")
	conn := dialAt(t, d, "stream:r")
	send(t, conn, request)
	_, err := io.ReadAll(conn)
	check(t, errors.Join(err, conn.Close()))
	relay.Terminate(t)
	got := tshark(t, d+"/f.pcapng", "http", "_ws.col.Protocol", "http.request.method", "http.request.uri", "http.host", "http.response.code", "http.content_length")
	if want := "HTTP\tGET\t/what\there\t\t\nHTTP\t\t\t\t200\t100000\n"; got != want {
		t.Errorf("tshark printed %q", got)
	}
	if got := tshark(t, d+"/f.pcapng", "tcp.analysis.flags", "frame.number", "tcp.analysis.flags"); got != "" {
		t.Errorf("the stream is not sound: %q", got)
	}
	wantWords(t, tshark(t, d+"/f.pcapng", "frame.comment", "frame.comment"), fmt.Sprintf("opened uid %d gid %d pid %d to s", os.Geteuid(), os.Getegid(), os.Getpid()))
}

// The capture contains all parts of a PostgreSQL login.
func TestShowPostgreSQLToTshark(t *testing.T) {
	testkit.StressOnly(t)
	testkit.NeedRoot(t, "to become the user postgres")
	t.Parallel()
	need(t, "tshark", "tshark")
	need(t, "psql", "postgresql-client")
	programs, _ := exec.Command("sh", "-c", "ls -d /usr/lib/postgresql/*/bin").Output()
	if len(programs) == 0 {
		testkit.Missing(t, "PostgreSQL", "install the package postgresql")
	}
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	check(t, os.Mkdir(d+"/r", 0o755))
	server := start(t, d, "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-ec", `PATH=$0:$PATH; mkdir run; echo secret >pw
		initdb -D data -U postgres -A scram-sha-256 --pwfile=pw -N >&2; exec postgres -D $PWD/data -k $PWD/run -c listen_addresses= -c fsync=off`, strings.TrimSpace(string(programs)))
	server.Err.Await(t, 1, "ready to accept connections")
	relay := forward(t, d, "stream:r/.s.PGSQL.5432", "stream:run/.s.PGSQL.5432", "--show", "f.pcapng", "--show-port", "5432")
	if status, out, stderr := run(t, d, "", "env", "PGPASSWORD=secret", "psql", "-h", d+"/r", "-U", "postgres", "-Atc", "SELECT 6*7"); status != 0 || out != "42\n" {
		t.Errorf("psql printed %q, %s", out, stderr)
	}
	relay.Terminate(t)
	got := tshark(t, d+"/f.pcapng", "pgsql", "_ws.col.Protocol", "pgsql.type", "pgsql.parameter_value", "pgsql.auth.sasl.mech", "pgsql.query", "pgsql.val.data")
	wantWords(t, got, "PGSQL\tStartup message\tpostgres,postgres,psql", "SASL", "Simple query", "SELECT 6*7", "Data row")
	server.Signal(t, os.Interrupt)
	if status := server.Status(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}
