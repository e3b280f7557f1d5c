package main_test

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// terminal returns a pseudoterminal, pty(7): the end of the user who types,
// and the end that is a program's standard input.
func terminal(t *testing.T) (typist, tty *os.File) {
	t.Helper()
	typist, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { _ = typist.Close() })
	check(t, unix.IoctlSetPointerInt(int(typist.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetUint32(int(typist.Fd()), unix.TIOCGPTN)
	check(t, err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { _ = tty.Close() })
	return typist, tty
}

// startTyping starts the client at a terminal of its own, so that it gets the
// signals typed there.
func startTyping(t *testing.T, d string, args ...string) (p *testkit.Process, typing func(keys string)) {
	t.Helper()
	typist, tty := terminal(t)
	p = testkit.Prepare(t, d, append([]string{"client", "--log-format", "plain"}, args...)...)
	p.Cmd.Stdin = tty
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.Start(t)
	return p, func(keys string) {
		_, err := typist.WriteString(keys)
		check(t, err)
	}
}

const ctrlC, ctrlD = "\x03", "\x04"

// echoRecorded answers one client of a type, and returns the received pieces.
func echoRecorded(t *testing.T, d, kind string) (received <-chan string) {
	t.Helper()
	pieces := make(chan string, 100)
	ended := make(chan struct{})
	buf := make([]byte, 1000)
	if kind == "datagram" {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
		check(t, err)
		go func() {
			defer close(ended)
			for {
				n, client, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				pieces <- string(buf[:n])
				_, _ = conn.WriteTo(buf[:n], client)
			}
		}()
		t.Cleanup(func() { check(t, conn.Close()); <-ended })
		return pieces
	}
	l, err := net.Listen(networks[kind], d+"/s")
	check(t, err)
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		for {
			n, err := conn.Read(buf)
			if n == 0 || err != nil {
				return
			}
			pieces <- string(buf[:n])
			_, _ = conn.Write(buf[:n])
		}
	}()
	t.Cleanup(func() { check(t, l.Close()); <-ended })
	return pieces
}

func TestTypedLines(t *testing.T) {
	t.Parallel()
	for kind, hint := range map[string]string{
		"stream": "lines go as typed; Ctrl-D ends", "datagram": "one line a message; Ctrl-D ends", "seqpacket": "one line a message; Ctrl-D ends",
	} {
		for _, more := range [][]string{nil, {"--no-echo"}} {
			for name, end := range map[string]string{"Ctrl-D": ctrlD, "Ctrl-C": ctrlC} {
				t.Run(fmt.Sprint(kind, more, name), func(t *testing.T) {
					t.Parallel()
					d := dir(t)
					received := echoRecorded(t, d, kind)
					p, typing := startTyping(t, d, append(more, "--connect", kind+":s", "--bind", "auto", "-")...)
					p.Err.Await(t, 1, "sending standard input\n")
					replies := ""
					for _, line := range []string{"hello\n", "\n", "it's me\n"} {
						typing(line)
						select {
						case got := <-received:
							if got != line {
								t.Errorf("%q was typed, %q arrived", line, got)
							}
						case <-time.After(testkit.Patience):
							t.Fatalf("%q was typed, nothing arrived\n%s", line, &p.Err)
						}
						replies += line
						p.Out.Await(t, 1, replies)
					}
					typing(end)
					if status := p.Status(t); status != 0 || p.Out.String() != replies {
						t.Errorf("exit status %d, output %q", status, &p.Out)
					}
					if want := "connecting to s\n" + hint + "\nsending standard input\nclosing socket\n"; p.Err.String() != want {
						t.Errorf("events %q", &p.Err)
					}
					wantFiles(t, d, "s")
				})
			}
		}
	}
}

func TestTypedMessagesOfChunk(t *testing.T) {
	t.Parallel()
	d := dir(t)
	received := echoRecorded(t, d, "seqpacket")
	p, typing := startTyping(t, d, "--connect", "seqpacket:s", "--chunk", "3", "-")
	p.Err.Await(t, 1, "lines go as typed; Ctrl-D ends\n")
	typing("hello\n" + ctrlD)
	if status := p.Status(t); status != 0 || p.Out.String() != "hello\n" {
		t.Errorf("exit status %d, output %q\n%s", status, &p.Out, &p.Err)
	}
	if first, second := <-received, <-received; first != "hel" || second != "lo\n" {
		t.Errorf("received %q, %q", first, second)
	}
}
