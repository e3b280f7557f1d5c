package main_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

func listenDatagrams(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	check(t, c.SetDeadline(time.Now().Add(testkit.Patience)))
	return c
}

func dialDatagrams(t testing.TB, name, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"}, &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	check(t, c.SetDeadline(time.Now().Add(testkit.Patience)))
	return c
}

// A target that never answers, a log for example, does not use up the relay's
// clients.
func TestF59CountsDoNotTrustTheOtherEnd(t *testing.T) {
	t.Parallel()
	const limit, clients = 20, 40
	served := 0
	for _, args := range [][]string{{"--max-per-user", "0"}, {"--max-per-user", "0", "--idle-timeout", "0s"}, {"--max-connections", "1000", "--max-per-user", fmt.Sprint(limit)}} {
		d := dir(t)
		target := listenDatagrams(t, d+"/s")
		relay := forward(t, d, "datagram:r", "datagram:s", append([]string{"--max-connections", fmt.Sprint(limit), "--drain-timeout", "0s"}, args...)...)
		var froms []net.Addr
		var all []*net.UnixConn
		for i := range clients {
			c := dialDatagrams(t, fmt.Sprintf("%s/c%d", d, i), d+"/r")
			all = append(all, c)
			_, err := io.WriteString(c, fmt.Sprint(i))
			check(t, err)
			got, from := next(t, target)
			if got != fmt.Sprint(i) {
				t.Fatalf("%q: the target received %q from client %d; the relay wrote:\n%s", args, got, i, &relay.Err)
			}
			froms = append(froms, from)
			served++
		}
		// Those that were silent for longest are gone, and no others.
		for i := range clients {
			_, err := target.WriteTo([]byte(fmt.Sprint("re ", i)), froms[i])
			if i < clients-limit {
				if err == nil {
					t.Errorf("%q: client %d is still there", args, i)
				}
				continue
			}
			check(t, err)
			if got, _ := next(t, all[i]); got != fmt.Sprint("re ", i) {
				t.Errorf("%q: client %d received %q", args, i, got)
			}
		}
		relay.Terminate(t)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F59", Done: "clients of a datagram relay that allows 20 at a time, in all or for one user, with and without `--idle-timeout 0s`; the target never answers", Count: served,
		Outcome: "every message delivered; those silent for longest replaced; the last 20 get the answers that come late",
	})
}

// A client finds the relay's new socket when the file was removed, and gets its
// answers from there. An answer for a socket that is closed harms nobody.
func TestForwardDatagramsWhenItsSocketIsRemoved(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	relay := forward(t, d, "datagram:r", "datagram:s", "--drain-timeout", "0s")
	var first net.Addr
	exchange := func() {
		t.Helper()
		c := dialDatagrams(t, d+"/c", d+"/r")
		defer func() { check(t, errors.Join(c.Close(), os.Remove(d+"/c"))) }()
		_, err := io.WriteString(c, "hello")
		check(t, err)
		_, from := next(t, target)
		if first == nil {
			first = from
		}
		_, err = target.WriteTo([]byte("answer"), from)
		check(t, err)
		if got, _ := next(t, c); got != "answer" {
			t.Errorf("received %q", got)
		}
	}
	exchange()
	for i := range 6 {
		check(t, os.Remove(d+"/r"))
		relay.Err.Await(t, i+1, "listening again")
		exchange()
	}
	_, err := target.WriteTo([]byte("late"), first)
	check(t, err)
	relay.Err.Await(t, 1, "the socket that it uses was removed")
	exchange()
}

// Two users have the same name one after the other, or have none.
func TestF57RelayKnowsClientsByTheirUser(t *testing.T) {
	testkit.NeedRoot(t, "to be other users")
	t.Parallel()
	d := dir(t)
	check(t, syscall.Chmod(d, 0o777))
	relay := start(t, d, "client", "forward", "--listen", "datagram:r", "--connect", "datagram:s", "--mode", "0666", "--show", "json", "--drain-timeout", "0s")
	target := listenDatagrams(t, d+"/s")
	relay.Err.Await(t, 1, "waiting for a ")
	froms := map[string]bool{}
	say := func(uid int, name string) {
		t.Helper()
		p := testkit.Prepare(t, d, "client", "--connect", "datagram:r", "--bind", name, strconv.Itoa(uid))
		if name == "none" {
			p = testkit.Prepare(t, d, "client", "--no-echo", "--connect", "datagram:r", "--bind", name, "--timeout", "1ms", strconv.Itoa(uid))
		}
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		p.Start(t)
		got, from := next(t, target)
		if got != strconv.Itoa(uid) {
			t.Errorf("the target received %q from user %d", got, uid)
		}
		if froms[from.String()] {
			t.Errorf("user %d and another client have one socket towards the target", uid)
		}
		froms[from.String()] = true
		if name != "none" {
			_, err := target.WriteTo([]byte(got), from)
			check(t, err)
		}
		if status := p.Status(t); status != 0 {
			t.Errorf("user %d at %q: exit status %d, %q; the relay wrote:\n%s", uid, name, status, &p.Err, &relay.Err)
		}
	}
	for _, uid := range []int{20001, 20002} {
		say(uid, "none")
		say(uid, "c")
	}
	relay.Terminate(t)
	pieces := 0
	for line := range strings.Lines(relay.Out.String()) {
		var piece struct {
			Event, Direction, Bytes string
			UID                     int
		}
		check(t, json.Unmarshal([]byte(line), &piece))
		if piece.Event != "data" || piece.Direction != "to target" {
			continue
		}
		bytes, err := base64.StdEncoding.DecodeString(piece.Bytes)
		check(t, err)
		if string(bytes) != strconv.Itoa(piece.UID) {
			t.Errorf("the record has %q as the words of user %d", bytes, piece.UID)
		}
		pieces++
	}
	if pieces != 4 {
		t.Errorf("the record has %d messages", pieces)
	}
}

// A relay logs its clients at every level, and never what they send.
func TestF60RelayLogsNoPayload(t *testing.T) {
	t.Parallel()
	need(t, "socat", "socat")
	const secret = "the secret"
	for form, echo := range map[string]string{
		"stream": "UNIX-LISTEN:s,fork", "seqpacket": "UNIX-LISTEN:s,fork,type=5", "datagram": "",
	} {
		d := dir(t)
		var target *net.UnixConn
		if echo == "" {
			target = listenDatagrams(t, d+"/s")
		} else {
			socat := start(t, d, "socat", "-d", "-d", echo, "EXEC:cat")
			socat.Err.Await(t, 1, "listening on")
			defer socat.Terminate(t)
		}
		relay := forward(t, d, form+":r", form+":s", "--log-level", "debug")
		client := start(t, d, "client", "--connect", form+":r", secret)
		if target != nil {
			text, from := next(t, target)
			_, err := target.WriteTo([]byte(text), from)
			check(t, err)
		}
		if status := client.Status(t); status != 0 {
			t.Errorf("%s: exit status %d, %s", form, status, &client.Err)
		}
		if target != nil { // gone, so that the next message is lost, for a reason
			check(t, target.Close())
			check(t, os.Remove(d+"/s"))
			run(t, d, "", "--no-echo", "--bind", "none", "--connect", "datagram:r", "--timeout", "1ms", secret)
			relay.Err.Await(t, 1, "dropped a message to the target")
		}
		relay.Terminate(t)
		if log := relay.Err.String(); strings.Contains(log, "secret") {
			t.Errorf("%s: the log has the payload:\n%s", form, log)
		}
	}
}

// sendRights sends words and descriptors: package net does not, if a datagram
// socket is connected. to is nil then.
func sendRights(t testing.TB, from *net.UnixConn, words string, to net.Addr, fds ...int) (err error) {
	t.Helper()
	var at unix.Sockaddr
	if to != nil {
		at = &unix.SockaddrUnix{Name: to.String()}
	}
	raw, err := from.SyscallConn()
	check(t, err)
	check(t, raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), []byte(words), unix.UnixRights(fds...), at, 0)
		return err != unix.EAGAIN
	}))
	return err
}

// sendEnd sends words and the writing end of a new pipe to a socket, and returns
// the reading end: at its end, no process has the other one any more.
func sendEnd(t testing.TB, from *net.UnixConn, words string, to net.Addr) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() { _ = r.Close() })
	check(t, r.SetDeadline(time.Now().Add(testkit.Patience)))
	check(t, errors.Join(sendRights(t, from, words, to, int(w.Fd())), w.Close()))
	return r
}

// receiveEnd receives words and the end that sendEnd sent.
func receiveEnd(t testing.TB, c *net.UnixConn, words string) (end *os.File, from *net.UnixAddr) {
	t.Helper()
	buf, control := make([]byte, 100), make([]byte, 100)
	n, size, _, from, err := c.ReadMsgUnix(buf, control)
	check(t, err)
	messages, err := unix.ParseSocketControlMessage(control[:size])
	if check(t, err); string(buf[:n]) != words || len(messages) != 1 {
		t.Fatalf("received %q with %d control messages, want %q with one", buf[:n], len(messages), words)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if check(t, err); len(fds) != 1 {
		t.Fatalf("received %d descriptors", len(fds))
	}
	return os.NewFile(uintptr(fds[0]), words), from
}

// wantSame checks that both ends are of the same pipe, and that no other process
// has the writing end: so sd_notify(3) waits until its message is handled.
func wantSame(t testing.TB, r, w *os.File) {
	t.Helper()
	_, err := io.WriteString(w, "through the pipe")
	check(t, errors.Join(err, w.Close()))
	if text, err := io.ReadAll(r); err != nil || string(text) != "through the pipe" {
		t.Errorf("the pipe gave %q, %v", text, err)
	}
}

func TestF52RelayPassesDescriptorsOfDatagrams(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	relay := forward(t, d, "datagram:r", "datagram:s", "--pass-files", "--show", "json", "--drain-timeout", "0s")
	clients := []*net.UnixConn{dialDatagrams(t, d+"/c0", d+"/r"), dialDatagrams(t, d+"/c1", d+"/r")}
	before := 0
	for round := range 50 {
		for i, c := range clients {
			words := []string{"", "BARRIER=1"}[(round+i)%2] // journald gets large entries with an empty message
			r := sendEnd(t, c, words, nil)
			w, from := receiveEnd(t, target, words)
			wantSame(t, r, w)
			r = sendEnd(t, target, "re: "+words, from)
			w, _ = receiveEnd(t, c, "re: "+words)
			wantSame(t, r, w)
			_, err := io.WriteString(c, "without one")
			check(t, err)
			if text, _ := next(t, target); text != "without one" {
				t.Errorf("received %q", text)
			}
		}
		if round == 0 {
			before = openFiles(t, relay)
		}
	}
	testkit.Await(t, func() error {
		if n := openFiles(t, relay); n > before {
			return fmt.Errorf("%d descriptors are open in the relay, %d were at first", n, before)
		}
		return nil
	})

	// Descriptors for a client that does not read are bounded in the relay, and
	// stop no other client.
	_, err := io.WriteString(clients[0], "hello")
	check(t, err)
	_, lazy := next(t, target)
	f, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { _ = f.Close() }()
	full := make([]int, 253)
	for i := range full {
		full[i] = int(f.Fd())
	}
	for range 50 {
		check(t, sendRights(t, target, "unread", lazy, full...))
	}
	r := sendEnd(t, clients[1], "another client", nil)
	w, from := receiveEnd(t, target, "another client")
	wantSame(t, r, w)
	r = sendEnd(t, target, "answered", from)
	w, _ = receiveEnd(t, clients[1], "answered")
	wantSame(t, r, w)
	if n := openFiles(t, relay); n > before+2048 {
		t.Errorf("%d descriptors are open in the relay", n)
	}
	relay.Terminate(t)

	// Without the flag they do not pass.
	plain := forward(t, d, "datagram:p", "datagram:s", "--drain-timeout", "0s")
	c := dialDatagrams(t, d+"/c2", d+"/p")
	r, w, err = os.Pipe()
	check(t, err)
	defer func() { _ = r.Close() }()
	check(t, r.SetDeadline(time.Now().Add(testkit.Patience)))
	err = sendRights(t, c, "refused", nil, int(w.Fd()))
	if !errors.Is(err, unix.EPERM) { // Linux 6.16
		check(t, err)
		plain.Err.Await(t, 1, "dropped a message: message carries file descriptors")
	}
	check(t, w.Close())
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the relay keeps the descriptor: %v", err)
	}
	_, err = io.WriteString(c, "served")
	check(t, err)
	if text, _ := next(t, target); text != "served" {
		t.Errorf("received %q", text)
	}
	plain.Terminate(t)
}

// A relay removes the names that killed ones have left beside the target, and
// nothing else.
func TestF60RelayRemovesTheNamesOfKilledRelays(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	ask := func() (name string) {
		t.Helper()
		c := dialDatagrams(t, d+"/c", d+"/r")
		_, err := io.WriteString(c, "hello")
		check(t, err)
		_, from := next(t, target)
		_, err = target.WriteTo([]byte("re"), from)
		check(t, err)
		next(t, c)
		check(t, errors.Join(c.Close(), os.Remove(d+"/c")))
		return from.String()
	}
	// What must stay: sockets in use, and files that no relay made.
	name := func(n int) string { return fmt.Sprintf("%s/client.host.%d.abcdefgh", d, n) }
	listenDatagrams(t, name(1))
	dialDatagrams(t, name(2), d+"/s")
	l, err := net.Listen("unix", name(3))
	check(t, err)
	defer func() { _ = l.Close() }()
	check(t, os.WriteFile(name(4), []byte("mine"), 0o600))
	check(t, os.Mkdir(name(5), 0o700))
	check(t, listenDatagrams(t, d+"/other").Close())
	check(t, os.Symlink(d+"/other", name(6)))
	stay := []string{"other", "s"}
	for i := 1; i <= 6; i++ {
		stay = append(stay, filepath.Base(name(i)))
	}
	if os.Geteuid() == 0 {
		check(t, listenDatagrams(t, name(7)).Close())
		check(t, os.Chown(name(7), 10003, 10003))
		stay = append(stay, filepath.Base(name(7)))
	}
	slices.Sort(stay)

	last := ""
	for range 5 {
		relay := forward(t, d, "datagram:r", "datagram:s")
		if last != "" {
			testkit.WantGone(t, last)
			wantWords(t, relay.Err.String(), "removed names that a killed relay or client has left in "+d+" removed=1")
		}
		last = ask()
		relay.Signal(t, syscall.SIGKILL)
		relay.Status(t)
		if _, err := os.Lstat(last); err != nil {
			t.Error(err)
		}
	}
	relay := forward(t, d, "datagram:r", "datagram:s")
	relay.Terminate(t)
	wantFiles(t, d, stay...)
}

func TestForwardNamesTheCureIfItMayNotBind(t *testing.T) {
	testkit.NeedRoot(t, "to be another user")
	t.Parallel()
	d := dir(t)
	check(t, os.Mkdir(d+"/r", 0o777))
	check(t, os.Chmod(d+"/r", 0o777))
	target := listenDatagrams(t, d+"/s")
	check(t, os.Chmod(d+"/s", 0o666))
	relay := testkit.Prepare(t, d, "client", "forward", "--listen", "datagram:r/r", "--connect", "datagram:s")
	relay.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}
	relay.Start(t)
	relay.Err.Await(t, 1, "waiting for a ")
	_, err := io.WriteString(dialDatagrams(t, d+"/c", d+"/r/r"), "hello")
	check(t, err)
	relay.Err.Await(t, 1, "dropped a message to the target: ")
	wantWords(t, relay.Err.String(), "permission denied (EACCES)", "--bind DIR/ makes", "--bind none makes none")
	relay.Terminate(t)
	check(t, target.Close())
}
