package main_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// terminal returns both ends of a terminal, pty(7): the one of the user, and the
// one of the program.
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

// startTyping starts a program at a terminal of its own, so that it gets the
// signals typed there.
func startTyping(t *testing.T, d string, args ...string) (p *testkit.Process, typing func(keys string)) {
	t.Helper()
	typist, tty := terminal(t)
	p = testkit.Prepare(t, d, append(args, "--log-format", "plain")...)
	p.Cmd.Stdin = tty
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.Start(t)
	return p, func(keys string) {
		_, err := typist.WriteString(keys)
		check(t, err)
	}
}

const ctrlC, ctrlD = "\x03", "\x04"

func TestTypedLines(t *testing.T) {
	t.Parallel()
	for kind, hint := range map[string]string{
		"stream": "lines go as typed; Ctrl-D ends", "datagram": "one line a message; Ctrl-D ends", "seqpacket": "one line a message; Ctrl-D ends",
	} {
		for _, program := range [][]string{{"client"}, {"uds", "send"}} {
			for name, end := range map[string]string{"Ctrl-D": ctrlD, "Ctrl-C": ctrlC} {
				t.Run(fmt.Sprint(kind, program, name), func(t *testing.T) {
					t.Parallel()
					d := dir(t)
					server := start(t, d, "server", "--listen", kind+":s", "--log-format", "plain")
					server.Err.Await(t, 1, "waiting for a ")
					p, typing := startTyping(t, d, append(program, "--connect", kind+":s", "--bind", "auto", "-")...)
					p.Err.Await(t, 1, "sending standard input\n")
					replies := ""
					for _, line := range []string{"hello", "", "it is me"} {
						typing(line + "\n")
						server.Err.Await(t, 1, "received '"+line+`\n'`)
						replies += line + "\n"
						p.Out.Await(t, 1, replies)
					}
					typing(end)
					if status := p.Status(t); status != 0 || p.Out.String() != replies {
						t.Errorf("exit status %d, output %q", status, &p.Out)
					}
					if want := "connecting to s\n" + hint + "\nsending standard input\nclosing socket\n"; p.Err.String() != want {
						t.Errorf("events %q", &p.Err)
					}
					server.Stop(t)
				})
			}
		}
	}
}

func TestTypedMessagesOfChunk(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := start(t, d, "server", "--listen", "seqpacket:s", "--log-format", "plain")
	server.Err.Await(t, 1, "waiting for a ")
	p, typing := startTyping(t, d, "client", "--connect", "seqpacket:s", "--chunk", "3", "-")
	p.Err.Await(t, 1, "lines go as typed; Ctrl-D ends\n")
	typing("hello\n" + ctrlD)
	if status := p.Status(t); status != 0 || p.Out.String() != "hello\n" {
		t.Errorf("exit status %d, output %q\n%s", status, &p.Out, &p.Err)
	}
	server.Stop(t)
	wantWords(t, server.Err.String(), "received 'hel'\n", `received 'lo\n'`)
}

func TestEventsBeginALineOfTheTerminal(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := start(t, d, "server", "--listen", "s", "--log-format", "plain")
	server.Err.Await(t, 1, "waiting for a ")
	for message, want := range map[string]string{
		"it was 16 bytes. ": "received 'it was 16 bytes.'\nit was 16 bytes.\nreceived ' '\n \n",
		"a line\n":          "received 'a line\\n'\na line\n",
	} {
		user, tty := terminal(t)
		p := testkit.Prepare(t, d, "client", "--connect", "s", "--log-format", "plain", message)
		p.Cmd.Stdout, p.Cmd.Stderr = tty, tty
		p.Start(t)
		p.WantStatus(t, 0)
		check(t, tty.Close())
		shown, err := io.ReadAll(user) // EIO is its end
		if !errors.Is(err, unix.EIO) {
			t.Error(err)
		}
		got := strings.ReplaceAll(string(shown), "\r\n", "\n")
		if _, got, _ = strings.Cut(got, "sending '"); !strings.HasSuffix(got, "'\n"+want+"closing socket\n") {
			t.Errorf("the terminal shows %q", got)
		}
	}
	server.Stop(t)
}
