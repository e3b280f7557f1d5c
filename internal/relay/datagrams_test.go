package relay_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/udsecho/udsecho/internal/testkit"
)

func unixgram(path string) *net.UnixAddr { return &net.UnixAddr{Name: path, Net: "unixgram"} }

// listenDatagrams makes a target of datagrams.
func listenDatagrams(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", unixgram(path))
	check(t, err)
	return closedAtTheEnd(t, c)
}

// dialDatagrams makes a client of a datagram relay, or a target.
func dialDatagrams(t testing.TB, name, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixgram", unixgram(name), unixgram(path))
	check(t, err)
	return closedAtTheEnd(t, c)
}

func closedAtTheEnd(t testing.TB, c *net.UnixConn) *net.UnixConn {
	t.Helper()
	t.Cleanup(func() { _ = c.Close() })
	check(t, c.SetDeadline(time.Now().Add(testkit.Patience)))
	return c
}

// receive receives a datagram.
func receive(t testing.TB, c *net.UnixConn, want string) (from net.Addr) {
	t.Helper()
	buf := make([]byte, 100)
	n, from, err := c.ReadFrom(buf)
	if check(t, err); string(buf[:n]) != want {
		t.Errorf("received %q, not %q", buf[:n], want)
	}
	return from
}

// ask sends words from a client to the target, and returns the relay's name
// there.
func ask(t testing.TB, client, target *net.UnixConn, words string) (from net.Addr) {
	t.Helper()
	send(t, client, words)
	return receive(t, target, words)
}

// answer sends words from the target to a client.
func answer(t testing.TB, target *net.UnixConn, to net.Addr, client *net.UnixConn, words string) {
	t.Helper()
	_, err := target.WriteTo([]byte(words), to)
	check(t, err)
	receive(t, client, words)
}

func TestForwardDatagramsAnswerTheirSender(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	relay := forward(t, d, "datagram:r", "datagram:s")
	clients, froms := make([]*net.UnixConn, 3), make([]net.Addr, 3)
	for i := range clients {
		clients[i] = dialDatagrams(t, fmt.Sprintf("%s/c%d", d, i), d+"/r")
		froms[i] = ask(t, clients[i], target, fmt.Sprint("from ", i))
	}
	for i, c := range clients {
		answer(t, target, froms[i], c, fmt.Sprint("to ", i))
	}

	// A recreated target is found again. More messages than its queue holds
	// arrive in order, although it reads late; and so do as many replies: the
	// target is slowed down.
	check(t, errors.Join(target.Close(), os.Remove(d+"/s")))
	testkit.AwaitClosed(t, d+"/s")
	target = listenDatagrams(t, d+"/s")
	var sending errgroup.Group
	numbers := func(write func(words []byte) (int, error)) {
		sending.Go(func() error {
			for i := range 500 {
				if _, err := write([]byte(fmt.Sprint(i))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	var from net.Addr
	numbers(clients[0].Write)
	for i := range 500 {
		from = receive(t, target, fmt.Sprint(i))
	}
	numbers(func(words []byte) (int, error) { return target.WriteTo(words, from) })
	for i := range 500 {
		receive(t, clients[0], fmt.Sprint(i))
	}
	check(t, sending.Wait())
	if status := relay.Terminate(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, &relay.Err)
	}
	wantFiles(t, d, "c0", "c1", "c2", "s")
}

// A relay at its limit of datagram clients, which do not announce their end,
// forgets the oldest one. Health checks do not count.
func TestForwardMakesRoomForDatagramClients(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	forward(t, d, "datagram:r", "datagram:s", "--max-connections", "2")
	for i := range 5 {
		c := dialDatagrams(t, fmt.Sprintf("%s/c%d", d, i), d+"/r")
		answer(t, target, ask(t, c, target, "hello"), c, "re")
		wantHealthy(t, d, "datagram:r")
	}
	names, err := filepath.Glob(d + "/client.*")
	if check(t, err); len(names) > 2 {
		t.Errorf("the relay has the names %q", names)
	}
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
		forward(t, d, "datagram:r", "datagram:s", append([]string{"--max-connections", fmt.Sprint(limit), "--drain-timeout", "0s"}, args...)...)
		all, froms := make([]*net.UnixConn, clients), make([]net.Addr, clients)
		for i := range clients {
			all[i] = dialDatagrams(t, fmt.Sprintf("%s/c%d", d, i), d+"/r")
			froms[i] = ask(t, all[i], target, fmt.Sprint(i))
			served++
		}
		// Those that were silent for longest are gone, and no others.
		for i := range clients {
			if i >= clients-limit {
				answer(t, target, froms[i], all[i], fmt.Sprint("re ", i))
			} else if _, err := target.WriteTo([]byte("late"), froms[i]); err == nil {
				t.Errorf("%q: client %d is still there", args, i)
			}
		}
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
	exchange := func() (from net.Addr) {
		t.Helper()
		c := dialDatagrams(t, d+"/c", d+"/r")
		from = ask(t, c, target, "hello")
		answer(t, target, from, c, "answer")
		check(t, errors.Join(c.Close(), os.Remove(d+"/c")))
		return from
	}
	first := exchange()
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
	target := listenDatagrams(t, d+"/s")
	relay := forward(t, d, "datagram:r", "datagram:s", "--mode", "0666", "--show", "json", "--drain-timeout", "0s")
	froms := map[string]bool{}
	for _, uid := range []int{20001, 20002} {
		for name, program := range map[string][]string{"none": {"uds", "send", "--timeout", "1ms"}, "c": {"client"}} {
			words := strconv.Itoa(uid)
			p := testkit.Prepare(t, d, append(program, "--connect", "datagram:r", "--bind", name, words)...)
			p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
			p.Start(t)
			from := receive(t, target, words)
			if froms[from.String()] {
				t.Errorf("user %d and another client have one socket towards the target", uid)
			}
			froms[from.String()] = true
			if name != "none" {
				_, err := target.WriteTo([]byte(words), from)
				check(t, err)
			}
			if status := p.Status(t); status != 0 {
				t.Errorf("user %d at %q: exit status %d, %q; the relay wrote:\n%s", uid, name, status, &p.Err, &relay.Err)
			}
		}
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

// A relay logs its clients at every level, and never what they send, delivered
// or lost.
func TestF60RelayLogsNoPayload(t *testing.T) {
	t.Parallel()
	const secret = "the secret"
	for _, form := range []string{"stream", "seqpacket", "datagram"} {
		d := dir(t)
		relay := forward(t, d, form+":r", form+":s", "--log-level", "debug", "--drain-timeout", "0s")
		if form == "datagram" {
			target, client := listenDatagrams(t, d+"/s"), dialDatagrams(t, d+"/c", d+"/r")
			answer(t, target, ask(t, client, target, secret), client, secret)
			check(t, errors.Join(target.Close(), os.Remove(d+"/s")))
			testkit.AwaitClosed(t, d+"/s")
			send(t, client, secret)
			relay.Err.Await(t, 1, "dropped a message to the target")
		} else {
			serveAt(t, d, form+":s", echo)
			wantEcho(t, dialAt(t, d, form+":r"), secret)
		}
		relay.Terminate(t)
		wantWords(t, relay.Err.String(), " uid=")
		if log := relay.Err.String(); strings.Contains(log, "secret") {
			t.Errorf("%s: the log has the payload:\n%s", form, log)
		}
	}
}

// A relay removes the names that killed ones have left beside the target, and
// nothing else.
func TestF60RelayRemovesTheNamesOfKilledRelays(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target := listenDatagrams(t, d+"/s")
	// What must stay: sockets in use, and files that no relay made.
	stay := []string{"other", "s"}
	name := func(n int) string {
		name := fmt.Sprintf("client.host.%d.abcdefgh", n)
		stay = append(stay, name)
		return filepath.Join(d, name)
	}
	listenDatagrams(t, name(1))
	dialDatagrams(t, name(2), d+"/s")
	l, err := net.Listen("unix", name(3))
	check(t, err)
	defer func() { _ = l.Close() }()
	check(t, os.WriteFile(name(4), []byte("mine"), 0o600))
	check(t, os.Mkdir(name(5), 0o700))
	check(t, listenDatagrams(t, d+"/other").Close())
	check(t, os.Symlink(d+"/other", name(6)))
	if os.Geteuid() == 0 {
		others := name(7)
		check(t, listenDatagrams(t, others).Close())
		check(t, os.Chown(others, 10003, 10003))
	}
	slices.Sort(stay)

	last := ""
	for range 5 {
		relay := forward(t, d, "datagram:r", "datagram:s")
		if last != "" {
			testkit.WantGone(t, last)
			wantWords(t, relay.Err.String(), "removed names that a killed relay or client has left in "+d+" removed=1")
		}
		c := dialDatagrams(t, d+"/c", d+"/r")
		last = ask(t, c, target, "hello").String()
		check(t, errors.Join(c.Close(), os.Remove(d+"/c")))
		relay.Signal(t, syscall.SIGKILL)
		relay.Status(t)
		if _, err := os.Lstat(last); err != nil {
			t.Error(err)
		}
	}
	forward(t, d, "datagram:r", "datagram:s").Terminate(t)
	wantFiles(t, d, stay...)
}

func TestForwardNamesTheCureIfItMayNotBind(t *testing.T) {
	testkit.NeedRoot(t, "to be another user")
	t.Parallel()
	d := dir(t)
	check(t, os.Mkdir(d+"/r", 0o777))
	check(t, os.Chmod(d+"/r", 0o777))
	listenDatagrams(t, d+"/s")
	check(t, os.Chmod(d+"/s", 0o666))
	relay := testkit.Prepare(t, d, "uds", "forward", "--listen", "datagram:r/r", "--connect", "datagram:s")
	relay.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10003, Gid: 10003}}
	relay.Start(t)
	relay.Err.Await(t, 1, "waiting for a ")
	send(t, dialDatagrams(t, d+"/c", d+"/r/r"), "hello")
	relay.Err.Await(t, 1, "dropped a message to the target: ")
	wantWords(t, relay.Err.String(), "permission denied (EACCES)", "--bind DIR/ makes", "--bind none makes none")
	relay.Terminate(t)
}
