package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

const message = "This is the message.  It will be repeated."

// The original server, in Python, with other messages.
const pythonServer = `
import os, socket
try:
    os.unlink("./uds_socket")
except OSError:
    pass
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.bind("./uds_socket")
sock.listen(1)
print("listening on ./uds_socket", flush=True)
while True:
    connection, peer = sock.accept()
    try:
        while True:
            data = connection.recv(16)
            if not data:
                break
            connection.sendall(data)
    finally:
        connection.close()
`

func TestStrangersServe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pkg  string
		args []string
	}{
		{"socat", []string{"socat", "-d", "-d", "-t", "60", "UNIX-LISTEN:uds_socket,fork", "EXEC:cat"}},
		{"python3", []string{"python3", "-c", pythonServer}},
	} {
		t.Run(tt.pkg, func(t *testing.T) {
			t.Parallel()
			need(t, tt.args[0], tt.pkg)
			d := dir(t)
			server := start(t, d, tt.args...)
			listening := &server.Out
			if tt.pkg == "socat" {
				listening = &server.Err
			}
			listening.Await(t, 1, "listening on")

			// More than the buffers of both directions hold.
			much := strings.Repeat(message+"\n", 20_000)
			for _, c := range []struct {
				args        []string
				stdin, want string
			}{
				{[]string{"--chunk", "1024"}, "", message},
				{[]string{"--bind", "auto", "hello"}, "", "hello"},
				{[]string{"--chunk", "65536", "-"}, much, much},
				{[]string{"-"}, "", ""},
			} {
				status, stdout, stderr := run(t, d, c.stdin, c.args...)
				if status != 0 || stdout != c.want {
					t.Errorf("%q: exit status %d, %d bytes of output, %d wanted, error %q", c.args, status, len(stdout), len(c.want), stderr)
				}
			}
			server.Terminate(t)
		})
	}
}

func TestEmptySettingsMeanTheDefault(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	p := start(t, d, "client", "--log-format", "plain", "--chunk", "0", "--bind", "")
	conn, err := l.Accept()
	check(t, err)
	if name := conn.RemoteAddr().String(); name != "@" && name != "" {
		t.Errorf("the client's name is %q", name)
	}
	_, _ = io.CopyN(conn, conn, int64(len(message)))
	check(t, conn.Close())
	if status := p.Status(t); status != 0 || p.Out.String() != message {
		t.Errorf("exit status %d, output %q", status, &p.Out)
	}
	wantWords(t, p.Err.String(), "received 'This is the mess'\nreceived 'age.  It will be'\nreceived ' repeated.'\n")
}

func TestTranscriptWithSourcesServer(t *testing.T) {
	t.Parallel()
	d := dir(t)
	need(t, "python3", "python3")
	server := start(t, d, "python3", "-c", pythonServer)
	server.Out.Await(t, 1, "listening on")
	status, stdout, stderr := run(t, d, "", "--log-format", "plain")
	if status != 0 || stdout != message {
		t.Errorf("exit status %d, output %q", status, stdout)
	}
	if diff := cmp.Diff(`connecting to ./uds_socket
sending 'This is the message.  It will be repeated.'
received 'This is the mess'
received 'age.  It will be'
received ' repeated.'
closing socket
`, stderr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	server.Terminate(t)
}

func TestSignalRemovesBoundName(t *testing.T) {
	t.Parallel()
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			d, l := listen(t)
			p := start(t, d, "client", "--bind", "auto", "-")
			conn, err := l.Accept()
			check(t, err)
			defer func() { check(t, conn.Close()) }()
			name := conn.RemoteAddr().String()
			if ok, _ := filepath.Match("client.*.*.*", name); !ok {
				t.Errorf("the client's name is %q", name)
			}
			wantFiles(t, d, name, "uds_socket")
			p.Err.Await(t, 1, "sending standard input")

			p.Signal(t, s)
			wantEnd(t, p, s)
			wantFiles(t, d, "uds_socket")
		})
	}
}

// wantEnd waits for the end of a client that has got a signal.
func wantEnd(t *testing.T, p *testkit.Process, s os.Signal) {
	t.Helper()
	status, stderr := p.Status(t), p.Err.String()
	if s == syscall.SIGHUP {
		if status != 129 || strings.Contains(stderr, "client: ") {
			t.Errorf("exit status %d, and it wrote %q", status, stderr)
		}
		return
	}
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, "\nclient: "+s.String())
}

// As ssh(1) ends its ProxyCommand.
func TestHangupIsSilent(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	p := start(t, d, "client", "--no-echo", "--log-level", "warn", "-")
	conn, err := l.Accept()
	check(t, err)
	defer func() { check(t, conn.Close()) }()
	_, err = io.WriteString(conn, "SSH-2.0-x")
	check(t, err)
	p.Out.Await(t, 1, "SSH-2.0-x")
	p.Signal(t, syscall.SIGHUP)
	wantEnd(t, p, syscall.SIGHUP)
	if text := p.Err.String(); text != "" {
		t.Errorf("it wrote %q", text)
	}
}

func TestNohup(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	p := start(t, d, "nohup", testkit.Program("client"), "--no-echo", "-")
	conn, err := l.Accept()
	check(t, err)
	p.Signal(t, syscall.SIGHUP)
	_, err = io.WriteString(conn, "goes on")
	check(t, errors.Join(err, conn.Close()))
	if status := p.Status(t); status != 0 {
		t.Errorf("%v, and wrote %q", p.Cmd.ProcessState, &p.Err)
	}
	if p.Out.String() != "goes on" {
		t.Errorf("%q", &p.Out)
	}
}

func TestBrokenPipeRemovesBoundName(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	r, w, err := os.Pipe()
	check(t, err)
	check(t, r.Close())
	p := testkit.Prepare(t, d, "client", "--bind", "auto")
	p.Cmd.Stdout = w
	p.Start(t)
	check(t, w.Close())
	conn, err := l.Accept()
	check(t, err)
	_, _ = io.CopyN(conn, conn, int64(len(message)))
	check(t, conn.Close())
	if status := p.Status(t); status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, p.Err.String(), "client: write the output: ", "broken pipe")
	wantFiles(t, d, "uds_socket")
}

func TestTimeoutReportsThatTheServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	d, _ := listen(t) // it never accepts
	status, stdout, stderr := run(t, d, "", "--timeout", "50ms", "--bind", "auto", "--log-level", "warn")
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	wantWords(t, stderr, "client: no answer for 50ms", "received 0 of 42 bytes", "paused or overloaded")
	wantFiles(t, d, "uds_socket")
}

// A server that had not read everything resets the connection.
func TestServerThatClosesUnreadIsFailure(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	p := start(t, d, "client")
	conn, err := l.Accept()
	check(t, err)
	_, err = io.ReadFull(conn, make([]byte, 16))
	check(t, err)
	_, err = io.WriteString(conn, message[:16])
	check(t, err)
	check(t, conn.Close())
	if status := p.Status(t); status != 1 || p.Out.String() != message[:16] {
		t.Errorf("exit status %d, output %q", status, &p.Out)
	}
	wantWords(t, p.Err.String(), "client: received 16 of 42 bytes before the server closed the connection")
}

func TestServerThatClosesEarlyIsFailure(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	p := start(t, d, "client")
	conn, err := l.Accept()
	check(t, err)
	_, err = io.ReadFull(conn, make([]byte, len(message)))
	check(t, err)
	_, err = io.WriteString(conn, message[:16])
	check(t, err)
	check(t, conn.Close())
	if status := p.Status(t); status != 1 || p.Out.String() != message[:16] {
		t.Errorf("exit status %d, output %q", status, &p.Out)
	}
	wantWords(t, p.Err.String(), "client: received 16 of ")
}

func TestBindNames(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	check(t, os.Mkdir(d+"/names", 0o755))
	for bind, pattern := range map[string]string{
		"none":                 "",
		"auto":                 "client.*.*.*",
		"names/":               "names/client.*.*.*",
		"./me":                 "./me",
		"@" + filepath.Base(d): "@" + filepath.Base(d),
	} {
		p := start(t, d, "client", "--bind", bind, "hello")
		conn, err := l.Accept()
		check(t, err)
		name := conn.RemoteAddr().String()
		if pattern == "" {
			// Package net returns one of these for a client without a name.
			if name != "@" && name != "" {
				t.Errorf("--bind none gives the name %q", name)
			}
		} else if ok, _ := filepath.Match(pattern, name); !ok {
			t.Errorf("--bind %s gives the name %q", bind, name)
		}
		_, err = io.CopyN(conn, conn, 5)
		check(t, err)
		check(t, conn.Close())
		if status := p.Status(t); status != 0 || p.Out.String() != "hello" {
			t.Errorf("exit status %d, output %q, error %q", status, &p.Out, &p.Err)
		}
	}
	wantFiles(t, d, "names", "uds_socket")
	wantFiles(t, d+"/names")
}

func TestConnectToAnotherFileNamesItsType(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/uds_socket", []byte("precious"), 0o640))
	status, stdout, stderr := run(t, d, "", "--bind", "auto", "--log-level", "warn")
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	wantWords(t, stderr, "client: connect stream:./uds_socket: ", "ECONNREFUSED", "./uds_socket is a regular file, not a socket")
	wantFiles(t, d, "uds_socket")
}

func TestRefusesSocketOfAnotherType(t *testing.T) {
	t.Parallel()
	d := dir(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/uds_socket", Net: "unixgram"})
	check(t, err)
	defer func() { check(t, conn.Close()) }()
	status, _, stderr := run(t, d, "", "--retry", "60s") // a retry would not help
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, stderr, "client: connect stream:./uds_socket: ", "EPROTOTYPE", "./uds_socket is a datagram socket; use datagram:./uds_socket")
}

func TestUsageErrorIsStatus2(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, tt := range []struct {
		args  []string
		words string
	}{
		{[]string{"--no-such-flag"}, "unknown flag --no-such-flag"},
		{[]string{"one", "two"}, "two"},
		{[]string{"--connect", "foo:bar"}, `unknown form "foo"`},
		{[]string{"--connect", "tcp:localhost:http"}, "is not HOST:PORT"},
		{[]string{"--connect", ""}, "path is empty"},
		{[]string{"--connect", "datagram:d", "--bind", "none"}, "a datagram client without a name cannot be answered"},
		{[]string{"--chunk=-1"}, "--chunk -1: choose from 1"},
		{[]string{"--window", "0"}, "--window 0: choose from 1 to 1000"},
		{[]string{"--window", "1001"}, "--window 1001: choose from 1 to 1000"},
		{[]string{"--sndbuf=-1"}, "--sndbuf -1: choose from 0"},
		{[]string{"--retry=-1s"}, "--retry -1s"},
		{[]string{"--timeout=-1s"}, "--timeout -1s"},
		{[]string{"--timeout", "soon"}, "duration"},
	} {
		status, stdout, stderr := run(t, d, "", tt.args...)
		first, rest, _ := strings.Cut(stderr, "\n")
		if status != 2 || stdout != "" || !strings.HasPrefix(first, "client: ") || rest != "" || !strings.HasSuffix(first, " --help)") {
			t.Errorf("%q: exit status %d, output %q, error %q", tt.args, status, stdout, stderr)
		}
		wantWords(t, first, tt.words)
	}
	wantFiles(t, d)
}

// A peer that reads and never answers must not fill the memory of a client
// that keeps the bytes not yet echoed.
func TestF40PeerThatNeverAnswersDoesNotFillTheMemory(t *testing.T) {
	t.Parallel()
	const (
		offered = 600 << 20
		kept    = 8 << 20
	)
	// Never with the race detector, which uses several times the memory.
	plain := testkit.Plain(t, "client")
	count := 0
	// try offers bytes to a peer, and returns the client's peak in KiB.
	try := func(offered int64, network, words string, args ...string) (peak int) {
		t.Helper()
		d := dir(t)
		l, err := net.Listen(network, d+"/s")
		check(t, err)
		in, err := os.Create(d + "/in")
		check(t, err)
		check(t, in.Truncate(offered)) // a hole uses no disk space
		p := testkit.Prepare(t, d, append([]string{plain, "--retry", "30s", "--timeout", "1s", "-"}, args...)...)
		p.Cmd.Stdin = in
		p.Start(t)
		conn, err := l.Accept()
		check(t, err)
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
		if read > kept {
			t.Errorf("%s: %d bytes were sent, and %d may be kept", network, read, kept)
		}
		if seen == 0 {
			t.Errorf("%s: only %d bytes were sent", network, read)
		}
		check(t, errors.Join(conn.Close(), l.Close(), in.Close()))
		return peak
	}
	peak := 0
	for _, tt := range []struct {
		network, words string
		args           []string
	}{
		{"unix", "no answer for 1s: received 0 of ", []string{"--connect", "stream:s", "--chunk", "65536"}},
		{"unixpacket", "no answer for 1s: received 0 messages", []string{"--connect", "seqpacket:s", "--chunk", "65536", "--window", "1000"}},
	} {
		half, whole := try(offered/2, tt.network, tt.words, tt.args...), try(offered, tt.network, tt.words, tt.args...)
		if grown := (whole - half) << 10; grown > offered/8 {
			t.Errorf("%s: with twice the bytes the client grows by %d", tt.network, grown)
		}
		peak = max(peak, whole)
		count++
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F40", Done: "600 MiB for a peer that reads and never answers, with `--retry`, over stream and seqpacket", Count: count,
		Outcome: fmt.Sprintf("8 MiB sent, then the transfer waits, and `--timeout` ends it; %d MiB resident at most, of the 64 MiB that the stack's client has", peak>>10),
	})
}

// A regular file is sent by the kernel, from the position that the shell left.
func TestFileIsSentFromItsPosition(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	content := strings.Repeat("0123456789", 300_000)
	check(t, os.WriteFile(d+"/in", []byte(content), 0o600))
	in, err := os.Open(d + "/in")
	check(t, err)
	defer func() { check(t, in.Close()) }()
	for _, tt := range []struct {
		name, want string
		args       []string
		serve      func(net.Conn)
	}{
		{"echoed", "", nil, func(c net.Conn) { _, _ = io.Copy(c, c); _ = c.Close() }},
		{"not read", "the server has not read for 50ms", []string{"--no-echo", "--timeout", "50ms"}, func(net.Conn) {}},
		{"closed", "received 0 of ", nil, func(c net.Conn) { _ = c.Close() }},
	} {
		_, err = in.Seek(5, io.SeekStart)
		check(t, err)
		p := testkit.Prepare(t, d, append([]string{"client", "--log-level", "warn", "-"}, tt.args...)...)
		p.Cmd.Stdin = in
		p.Start(t)
		conn, err := l.Accept()
		check(t, err)
		tt.serve(conn)
		if status := p.Status(t); (status == 0) != (tt.want == "") {
			t.Errorf("%s: exit status %d, error %q", tt.name, status, &p.Err)
		}
		wantWords(t, p.Err.String(), tt.want)
		if tt.want == "" && p.Out.String() != content[5:] {
			t.Errorf("%s: %d bytes of %d, or others", tt.name, len(p.Out.String()), len(content)-5)
		}
		_ = conn.Close()
	}
}
