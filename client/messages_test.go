package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/testkit"
)

var networks = map[string]string{"stream": "unix", "datagram": "unixgram", "seqpacket": "unixpacket"}

// listenDatagram returns a datagram server's socket in a new directory.
func listenDatagram(t *testing.T) (d string, conn *net.UnixConn) {
	t.Helper()
	d = dir(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
	check(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	check(t, conn.SetDeadline(time.Now().Add(testkit.Patience)))
	return d, conn
}

// next returns the next datagram and its sender.
func next(t *testing.T, conn *net.UnixConn) (message string, client net.Addr) {
	t.Helper()
	buf := make([]byte, 100)
	n, client, err := conn.ReadFrom(buf)
	check(t, err)
	return string(buf[:n]), client
}

func TestWrongTypeIsAnErrorThatNamesTheRightOne(t *testing.T) {
	t.Parallel()
	for real, network := range networks {
		for asked := range networks {
			if asked == real {
				continue
			}
			t.Run(asked+" to "+real, func(t *testing.T) {
				t.Parallel()
				d := dir(t)
				if real == "datagram" {
					conn, err := net.ListenUnixgram(network, &net.UnixAddr{Name: d + "/s", Net: network})
					check(t, err)
					defer func() { check(t, conn.Close()) }()
				} else {
					l, err := net.Listen(network, d+"/s")
					check(t, err)
					defer func() { check(t, l.Close()) }()
				}
				status, stdout, stderr := run(t, d, "", "--log-level", "warn", "--bind", "auto", "--retry", "60s", "--connect", asked+":s")
				if status != 1 || stdout != "" {
					t.Errorf("exit status %d, output %q", status, stdout)
				}
				want := fmt.Sprintf("client: connect %s:s: protocol wrong type for socket (EPROTOTYPE): s is a %s socket; use %s:s\n", asked, real, real)
				if diff := cmp.Diff(want, stderr); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				wantFiles(t, d, "s")
			})
		}
	}
}

func TestSignalRemovesNameOfDatagramClientThatWaits(t *testing.T) {
	t.Parallel()
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			d, conn := listenDatagram(t)
			p := start(t, d, "client", "--connect", "datagram:s", "hello")
			got, sender := next(t, conn)
			name, err := filepath.Rel(d, sender.String())
			check(t, err)
			if ok, _ := filepath.Match("client.*.*.*", name); !ok || got != "hello" {
				t.Errorf("%q came from %q", got, sender)
			}
			wantFiles(t, d, name, "s")
			info, err := os.Lstat(sender.String())
			check(t, err)
			if info.Mode() != os.ModeSocket|0o666 {
				t.Errorf("the mode of its socket is %v", info.Mode())
			}

			p.Signal(t, s)
			wantEnd(t, p, s)
			wantFiles(t, d, "s")
		})
	}
}

func TestDatagramClientsNames(t *testing.T) {
	t.Parallel()
	d, conn := listenDatagram(t)
	check(t, os.Mkdir(d+"/names", 0o755))
	for bind, pattern := range map[string]string{
		"":                     d + "/client.*.*.*",
		"auto":                 d + "/client.*.*.*",
		d + "/names/":          d + "/names/client.*.*.*",
		d + "/me":              d + "/me",
		"@" + filepath.Base(d): "@" + filepath.Base(d),
	} {
		p := start(t, d, "client", "--connect", "datagram:"+d+"/s", "--bind", bind, "hello")
		_, sender := next(t, conn)
		if ok, _ := filepath.Match(pattern, sender.String()); !ok {
			t.Errorf("--bind %q gives the name %q", bind, sender)
		}
		_, err := conn.WriteTo([]byte("hello"), sender)
		check(t, err)
		if status := p.Status(t); status != 0 || p.Out.String() != "hello" {
			t.Errorf("exit status %d, output %q, error %q", status, &p.Out, &p.Err)
		}
	}
	wantFiles(t, d, "names", "s")
	wantFiles(t, d+"/names")
}

func TestDatagramServerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	d, _ := listenDatagram(t)
	status, stdout, stderr := run(t, d, "", "--connect", "datagram:s", "--timeout", "50ms", "--log-level", "warn")
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit status %d, output %q, error %q", status, stdout, stderr)
	}
	wantWords(t, stderr, "client: no answer for 50ms: received 0 messages", "paused or overloaded")
	wantFiles(t, d, "s")
}

func TestReplyOfAnotherLengthIsFailure(t *testing.T) {
	t.Parallel()
	d, conn := listenDatagram(t)
	p := start(t, d, "client", "--connect", "datagram:"+d+"/s", "hello")
	_, sender := next(t, conn)
	_, err := conn.WriteTo([]byte("hell"), sender)
	check(t, err)
	if status := p.Status(t); status != 1 || p.Out.String() != "" {
		t.Errorf("exit status %d, output %q", status, &p.Out)
	}
	wantWords(t, p.Err.String(), "client: a message of 5 bytes was answered with 4 bytes; the server is not an echo server")
	wantFiles(t, d, "s")
}

func TestSeqpacketServerThatClosesEarlyIsFailure(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l, err := net.Listen("unixpacket", d+"/s")
	check(t, err)
	defer func() { check(t, l.Close()) }()
	p := start(t, d, "client", "--connect", "seqpacket:s", "--bind", "auto", "hello")
	conn, err := l.Accept()
	check(t, err)
	_, err = conn.Read(make([]byte, 100))
	check(t, err)
	check(t, conn.Close())
	if status := p.Status(t); status != 1 {
		t.Errorf("exit status %d", status)
	}
	wantWords(t, p.Err.String(), "client: received 0 messages, but not the next one of 5 bytes, before the server closed the connection")
	wantFiles(t, d, "s")
}

// The original server with other messages, over the two other types.
const pythonMessages = `
import socket, sys
kind = sys.argv[1]
sock = socket.socket(socket.AF_UNIX, {"datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}[kind])
sock.bind("./s")
if kind == "seqpacket":
    sock.listen(1)
print("listening", flush=True)
while True:
    if kind == "datagram":
        data, peer = sock.recvfrom(1 << 20)
        sock.sendto(data, peer)
        continue
    connection, peer = sock.accept()
    while data := connection.recv(1 << 20):
        connection.send(data)
    connection.close()
`

func TestStrangersServeInMessages(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"datagram", "seqpacket"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			need(t, "python3", "python3")
			server := start(t, d, "python3", "-c", pythonMessages, kind)
			server.Out.Await(t, 1, "listening")
			much := strings.Repeat(message+"\n", 4000)
			for _, c := range []struct {
				args        []string
				stdin, want string
			}{
				{nil, "", message},
				{[]string{"-"}, much, much},
				{[]string{"--chunk", "1000", "-"}, much, much},
			} {
				status, stdout, stderr := run(t, d, c.stdin, append([]string{"--connect", kind + ":s"}, c.args...)...)
				if status != 0 || stdout != c.want {
					t.Errorf("%q: exit status %d, %d bytes of output, %d wanted, error %q", c.args, status, len(stdout), len(c.want), stderr)
				}
			}
			wantFiles(t, d, "s")
			server.Terminate(t)
		})
	}
}

func TestServerInAnotherDirectoryAnswersARelativeName(t *testing.T) {
	t.Parallel()
	d, conn := listenDatagram(t)
	check(t, os.Mkdir(filepath.Join(d, "below"), 0o755))
	p := start(t, filepath.Join(d, "below"), "client", "--connect", "datagram:../s", "hello")
	_, sender := next(t, conn)
	if !filepath.IsAbs(sender.String()) {
		t.Errorf("the client's name is %q, which only its own directory has", sender)
	}
	p.Terminate(t)
}

func TestMessageAndPathThatAreNotUTF8GoByteForByte(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l, err := net.Listen("unix", filepath.Join(d, "s\xff"))
	check(t, err)
	t.Cleanup(func() { check(t, l.Close()) })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}()
	status, stdout, stderr := run(t, d, "", "--connect", "./s\xff", "a\xffb")
	if status != 0 || stdout != "a\xffb" {
		t.Errorf("exit status %d, output %q\n%s", status, stdout, stderr)
	}
}

// What a slow server still sends to the first name must not count as the
// answer to a message sent again.
func TestResumingDatagramClientHasANewName(t *testing.T) {
	t.Parallel()
	d, conn := listenDatagram(t)
	p := start(t, d, "client", "--log-level", "warn", "--bind", "me", "--retry", "60s", "--timeout", "1s", "--connect", "datagram:s", "hello")
	_, first := next(t, conn)
	if first.String() != d+"/me" {
		t.Errorf("the first name is %s", first)
	}
	message, second := next(t, conn)
	if message != "hello" || second.String() == first.String() || filepath.Dir(second.String()) != d {
		t.Errorf("%q came from %s", message, second)
	}
	if _, err := conn.WriteTo([]byte("world"), first); err == nil {
		t.Error("the first name can still be answered")
	}
	_, err := conn.WriteTo([]byte("hello"), second)
	check(t, err)
	if status := p.Status(t); status != 0 || p.Out.String() != "hello" {
		t.Errorf("exit status %d, output %q, %s", status, &p.Out, &p.Err)
	}
	wantWords(t, p.Err.String(), "connecting again: no answer: the server may have ended")
	wantFiles(t, d, "s")
}
