package main_test

import (
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestNoEchoTalksToHTTPServer(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l, err := net.Listen("unix", d+"/uds_socket")
	check(t, err)
	body := strings.Repeat(message+"\n", 20_000)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })}
	ended := make(chan struct{})
	go func() { _ = server.Serve(l); close(ended) }()
	defer func() { _ = server.Close(); <-ended }()

	request := "GET / HTTP/1.0\r\n\r\n"
	for _, args := range [][]string{{"-"}, {request}} {
		status, stdout, stderr := run(t, d, request, append([]string{"--no-echo", "--chunk", "65536"}, args...)...)
		if status != 0 || !strings.HasPrefix(stdout, "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(stdout, "\r\n\r\n"+body) {
			t.Errorf("%q: exit status %d, %d bytes of output, error %q", args, status, len(stdout), stderr)
		}
	}
}

// The tutorial behind this project names the X Window System.
func TestNoEchoTalksToXServer(t *testing.T) {
	t.Parallel()
	need(t, "Xvfb", "xvfb")
	d := dir(t)
	x := start(t, d, "Xvfb", "-displayfd", "1", "-nolisten", "tcp")
	x.Out.Await(t, 1, "\n")
	socket := "/tmp/.X11-unix/X" + strings.TrimSpace(x.Out.String())
	// A connection setup: byte order l, version 11.0, no authorization.
	const setup = "l\x00\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	status, stdout, stderr := run(t, d, setup, "--no-echo", "--hex", "--connect", socket, "-")
	// 1 means success; the protocol's version follows.
	if status != 0 || !strings.HasPrefix(stdout, "00000000  01 00 0b 00 ") || !strings.Contains(stdout, "|g Foundation") {
		t.Errorf("exit status %d, output\n%s\nerror %q", status, stdout, stderr)
	}
	x.Terminate(t)
}

func TestNoEchoTalksToNetcat(t *testing.T) {
	t.Parallel()
	need(t, "nc.openbsd", "netcat-openbsd")
	d := dir(t)
	nc := start(t, d, "nc.openbsd", "-N", "-l", "-U", "s")
	_, err := io.WriteString(nc.In, "answer")
	check(t, err)
	check(t, nc.In.Close())
	status, stdout, stderr := run(t, d, "", "--no-echo", "--retry", "60s", "--log-format", "plain", "--connect", "s", "hello")
	if status != 0 || stdout != "answer" || stderr != "connecting to s\nsending 'hello'\nreceived 'answer'\nclosing socket\n" {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	if nc.Status(t) != 0 || nc.Out.String() != "hello" {
		t.Errorf("netcat received %q\n%s", &nc.Out, &nc.Err)
	}
}

func TestNoEchoTalksToSocat(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	for _, tt := range []struct {
		name, listen string
		args         []string
		stdin, want  string
	}{
		// wc answers only after the end of the input, and then ends.
		{"stream", "UNIX-LISTEN:s", []string{"--connect", "s", "-"}, "one\ntwo\n", "2\n"},
		{"stream from an argument", "UNIX-LISTEN:s", []string{"--connect", "s", "one"}, "", "0\n"},
		{"seqpacket", "UNIX-LISTEN:s,type=5", []string{"--connect", "seqpacket:s", "--chunk", "4", "-"}, "one\ntwo\n", "2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			socat := start(t, d, "socat", "-t", "60", tt.listen, "EXEC:wc -l")
			status, stdout, stderr := run(t, d, tt.stdin, append([]string{"--no-echo", "--retry", "60s"}, tt.args...)...)
			if status != 0 || stdout != tt.want {
				t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
			}
			if status := socat.Status(t); status != 0 {
				t.Errorf("socat: exit status %d, %s", status, &socat.Err)
			}
		})
	}
}

func TestReceiverThatNeverAnswersIsSuccess(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	for _, bind := range []string{"auto", "none"} {
		d := dir(t)
		socat := start(t, d, "socat", "-u", "UNIX-RECV:s", "-")
		status, stdout, stderr := run(t, d, "one\ntwo\n", "--no-echo", "--retry", "60s", "--bind", bind, "--chunk", "4",
			"--connect", "datagram:s", "--timeout", "50ms", "-")
		if status != 0 || stdout != "" {
			t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
		}
		socat.Out.Await(t, 1, "one\ntwo\n")
		socat.Terminate(t)
	}
}

func TestEmptyMessageOnlyListens(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	p := start(t, d, "client", "--no-echo", "--log-format", "plain", "")
	conn, err := l.Accept()
	check(t, err)
	_, err = io.WriteString(conn, "news")
	check(t, err)
	p.Out.Await(t, 1, "news")
	_, err = io.WriteString(conn, " and more")
	check(t, err)
	p.Out.Await(t, 1, "news and more")
	check(t, conn.Close())
	if status := p.Status(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if want := "connecting to ./uds_socket\nreceived 'news'\nreceived ' and more'\nclosing socket\n"; p.Err.String() != want {
		t.Errorf("events %q", &p.Err)
	}
}

// The bytes that a server sends before it closes with unread input are still
// the answer. If it sends nothing, there is no answer.
func TestNoEchoOfServerThatClosesUnread(t *testing.T) {
	t.Parallel()
	for network, answers := range map[string][]string{"unix": {"answer", ""}, "unixpacket": {"answer", ""}} {
		for _, answer := range answers {
			t.Run(network+" "+answer, func(t *testing.T) {
				t.Parallel()
				d := dir(t)
				l, err := net.Listen(network, d+"/s")
				check(t, err)
				defer func() { check(t, l.Close()) }()
				address := map[string]string{"unix": "s", "unixpacket": "seqpacket:s"}[network]
				p := start(t, d, "client", "--no-echo", "--log-level", "warn", "--connect", address, "hello")
				conn, err := l.Accept()
				check(t, err)
				check(t, awaitReadable(conn.(*net.UnixConn)))
				if answer != "" {
					_, err = io.WriteString(conn, answer)
					check(t, err)
				}
				check(t, conn.Close())
				status, want := p.Status(t), 0
				if answer == "" {
					want = 1
					wantWords(t, p.Err.String(), "client: the server closed the connection without an answer")
				}
				if status != want || p.Out.String() != answer {
					t.Errorf("exit status %d, output %q, error %q", status, &p.Out, &p.Err)
				}
			})
		}
	}
}

// A server that sends first may still want to read.
func TestNoEchoSendsToServerThatHasEndedItsDirection(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			l, err := net.Listen(networks[kind], d+"/s")
			check(t, err)
			defer func() { check(t, l.Close()) }()
			p := start(t, d, "client", "--no-echo", "--connect", kind+":s", "--chunk", "10", "-")
			conn, err := l.Accept()
			check(t, err)
			_, err = io.WriteString(conn, "answer")
			check(t, err)
			check(t, conn.(*net.UnixConn).CloseWrite())
			p.Out.Await(t, 1, "answer")
			_, err = io.WriteString(p.In, "late")
			check(t, err)
			check(t, p.In.Close())
			buf := make([]byte, 100)
			n, err := conn.Read(buf)
			check(t, err)
			if status := p.Status(t); status != 0 || string(buf[:n]) != "late" {
				t.Errorf("exit status %d, the server received %q, error %q", status, buf[:n], &p.Err)
			}
			check(t, conn.Close())
		})
	}
}

func TestNoEchoEndsWithItsServerWhateverTheInput(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			l, err := net.Listen(networks[kind], d+"/s")
			check(t, err)
			defer func() { check(t, l.Close()) }()
			p := start(t, d, "client", "--no-echo", "--connect", kind+":s", "--chunk", "10", "-")
			conn, err := l.Accept()
			check(t, err)
			check(t, conn.Close())
			if status := p.Status(t); status != 0 {
				t.Errorf("exit status %d, error %q", status, &p.Err)
			}
		})
	}
}

// awaitReadable waits for input and reads none of it.
func awaitReadable(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	})
}

func TestHexDumpIsComplete(t *testing.T) {
	t.Parallel()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, tt := range []struct {
		address string
		chunk   string
		want    string
	}{
		{"stream:s", "7", hex.Dump(all)},
		{"seqpacket:s", "100", hex.Dump(all[:100]) + hex.Dump(all[100:200]) + hex.Dump(all[200:])}, // one dump for each message
	} {
		t.Run(tt.address, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			kind, path, _ := strings.Cut(tt.address, ":")
			l, err := net.Listen(networks[kind], d+"/"+path)
			check(t, err)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					buf := make([]byte, 1000)
					for {
						n, err := conn.Read(buf)
						if n == 0 || err != nil {
							break
						}
						_, _ = conn.Write(buf[:n])
					}
					_ = conn.Close()
				}
			}()
			defer func() { check(t, l.Close()); <-ended }()
			for _, more := range [][]string{nil, {"--no-echo"}} {
				status, stdout, stderr := run(t, d, string(all), append(more, "--hex", "--chunk", tt.chunk, "--connect", tt.address, "-")...)
				if status != 0 {
					t.Errorf("exit status %d, error %q", status, stderr)
				}
				if diff := cmp.Diff(tt.want, stdout); diff != "" {
					t.Errorf("%q (-want +got):\n%s", more, diff)
				}
			}
		})
	}
}
