package main_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// forward starts a relay and waits until it listens.
func forward(t *testing.T, d, listen, connect string, args ...string) *testkit.Process {
	t.Helper()
	p := start(t, d, append([]string{"client", "forward", "--listen", listen, "--connect", connect}, args...)...)
	p.Err.Await(t, 1, "waiting for a ")
	return p
}

// freeTCP returns an address that is not in use: all of 127.0.0.0/8 is this
// host.
func freeTCP() string {
	return fmt.Sprintf("tcp:127.%d.%d.%d:7000", 1+mathrand.IntN(254), mathrand.IntN(256), 1+mathrand.IntN(254))
}

// split returns the parts of an address for package net; paths are relative to
// d.
func split(d, address string) (network, at string) {
	form, at, _ := strings.Cut(address, ":")
	if form == "tcp" {
		return form, at
	}
	return networks[form], d + "/" + at
}

// A halfCloser is a connection whose two directions end separately.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func dialAt(t testing.TB, d, address string) halfCloser {
	t.Helper()
	network, at := split(d, address)
	conn, err := net.Dial(network, at)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(2*testkit.Patience)))
	return conn.(halfCloser)
}

// serveAt serves every connection at an address with serve, and closes it then.
func serveAt(t testing.TB, d, address string, serve func(halfCloser)) {
	t.Helper()
	network, at := split(d, address)
	l, err := net.Listen(network, at)
	check(t, err)
	var running errgroup.Group
	running.Go(func() error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil
			}
			running.Go(func() error {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(2 * testkit.Patience))
				serve(conn.(halfCloser))
				return nil
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); _ = running.Wait() })
}

// exchange sends a stream at one side while it hashes the received bytes, to
// the end.
func exchange(conn halfCloser, send io.Reader) (got [sha256.Size]byte, err error) {
	hash := sha256.New()
	var both errgroup.Group
	both.Go(func() error {
		_, err := io.Copy(conn, send)
		if err == nil {
			err = conn.CloseWrite()
		}
		return err
	})
	both.Go(func() error {
		_, err := io.Copy(hash, conn)
		return err
	})
	err = both.Wait()
	hash.Sum(got[:0])
	return got, err
}

// stream returns n bytes that depend only on the seed.
func stream(seed byte, n int64) io.Reader {
	return io.LimitReader(mathrand.NewChaCha8([32]byte{seed}), n)
}

func sumOf(t *testing.T, r io.Reader) (sum [sha256.Size]byte) {
	hash := sha256.New()
	_, err := io.Copy(hash, r)
	check(t, err)
	hash.Sum(sum[:0])
	return sum
}

func TestForwardCarriesBothDirectionsAtOnce(t *testing.T) {
	t.Parallel()
	size := testkit.Count[int64](16<<20, 1<<30)
	up, down := sumOf(t, stream(1, size)), sumOf(t, stream(2, size+1))
	for _, via := range [][]string{{"stream:a", "stream:c"}, {"stream:a", freeTCP(), "stream:c"}, {freeTCP(), freeTCP()}, {"seqpacket:a", "seqpacket:c"}} {
		for _, more := range [][]string{nil, {"--pass-files"}} {
			if more != nil && strings.Contains(strings.Join(via, ""), "tcp:") {
				continue
			}
			t.Run(fmt.Sprint(len(via), via[0][:3], more), func(t *testing.T) {
				d := dir(t)
				result := make(chan error, 1)
				serveAt(t, d, via[len(via)-1], func(conn halfCloser) {
					got, err := exchange(conn, stream(2, size+1))
					if err == nil && got != up {
						err = fmt.Errorf("the target got other bytes")
					}
					result <- err
				})
				for i := len(via) - 1; i > 0; i-- {
					forward(t, d, via[i-1], via[i], more...)
				}
				got, err := exchange(dialAt(t, d, via[0]), stream(1, size))
				check(t, err)
				check(t, <-result)
				if got != down {
					t.Error("the client got other bytes")
				}
			})
		}
	}
}

// HTTP over a Unix socket, rsync and `docker run -i` end a request before its
// answer begins.
func TestForwardWaitsForTheAnswerToAHalfClose(t *testing.T) {
	t.Parallel()
	for _, via := range [][2]string{{"stream:r", "stream:s"}, {freeTCP(), "stream:s"}, {"stream:r", freeTCP()}, {"seqpacket:r", "seqpacket:s"}} {
		d := dir(t)
		heard, answer := make(chan string), make(chan bool)
		serveAt(t, d, via[1], func(conn halfCloser) {
			request, _ := io.ReadAll(conn)
			heard <- string(request)
			<-answer
			_, _ = io.WriteString(conn, "the answer")
		})
		forward(t, d, via[0], via[1])
		conn := dialAt(t, d, via[0])
		_, err := io.WriteString(conn, "the request")
		check(t, err)
		check(t, conn.CloseWrite())
		if got := <-heard; got != "the request" {
			t.Errorf("%v: the target heard %q", via, got)
		}
		close(answer)
		if got, err := io.ReadAll(conn); err != nil || string(got) != "the answer" {
			t.Errorf("%v: the client got %q, %v", via, got, err)
		}
	}
}

// socat closes the other direction 0.5 s after an end.
func TestForwardKeepsWhatSocatLoses(t *testing.T) {
	t.Parallel()
	testkit.StressOnly(t) // it takes 5 s
	need(t, "socat", "socat")
	d := dir(t)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		_, _ = io.Copy(io.Discard, conn)
		time.Sleep(5 * time.Second) // the test shows a time
		_, _ = io.WriteString(conn, "the answer")
	})
	forward(t, d, "stream:ours", "stream:s")
	socat := start(t, d, "socat", "-d", "-d", "UNIX-LISTEN:socat,fork", "UNIX-CONNECT:s")
	socat.Err.Await(t, 1, "listening on")
	defer socat.Terminate(t)
	for at, want := range map[string]string{"ours": "the answer", "socat": ""} {
		conn := dialAt(t, d, "stream:"+at)
		_, err := io.WriteString(conn, "the request")
		check(t, err)
		check(t, conn.CloseWrite())
		from := time.Now()
		got, _ := io.ReadAll(conn)
		t.Logf("%s: %q after %v", at, got, time.Since(from))
		if string(got) != want {
			t.Errorf("%s gave %q", at, got)
		}
	}
}

func TestForwardRecordsKeepTheirBoundaries(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "seqpacket:s", func(conn halfCloser) {
		// Package net takes an empty record for the end, so the client's end
		// is read here.
		raw, _ := conn.(syscall.Conn).SyscallConn()
		buf := make([]byte, 1<<20)
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetNonblock(int(fd), false)
			check(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 212992))
			for {
				n, _, _, _, err := unix.Recvmsg(int(fd), buf, nil, 0)
				if err != nil || n == 4 && string(buf[:4]) == "done" {
					return
				}
				if _, err := unix.SendmsgN(int(fd), buf[:n], nil, nil, unix.MSG_NOSIGNAL); err != nil {
					return
				}
			}
		})
	})
	forward(t, d, "seqpacket:r", "seqpacket:s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { _ = unix.Close(fd) }()
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 212992))
	check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: d + "/r"}))
	buf := make([]byte, 1<<20)
	for _, size := range []int{1, 0, 16, 0, 0, 65536, 212960, 425952} {
		record := make([]byte, size)
		_, _ = rand.Read(record)
		check(t, unix.Send(fd, record, 0))
		n, err := unix.Read(fd, buf)
		check(t, err)
		if !bytes.Equal(buf[:n], record) {
			t.Errorf("a record of %d bytes came back as %d", size, n)
		}
	}
	check(t, unix.Send(fd, []byte("done"), 0))
	if n, err := unix.Read(fd, buf); n != 0 || err != nil {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
}

func TestForwardDatagramsAnswerTheirSender(t *testing.T) {
	t.Parallel()
	d := dir(t)
	target, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
	check(t, err)
	check(t, target.SetDeadline(time.Now().Add(testkit.Patience)))
	relay := forward(t, d, "datagram:r", "datagram:s")
	var clients []*net.UnixConn
	for i := range 3 {
		c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: fmt.Sprintf("%s/c%d", d, i), Net: "unixgram"}, &net.UnixAddr{Name: d + "/r", Net: "unixgram"})
		check(t, err)
		defer func() { _ = c.Close() }()
		check(t, c.SetDeadline(time.Now().Add(testkit.Patience)))
		clients = append(clients, c)
		_, err = fmt.Fprintf(c, "from %d", i)
		check(t, err)
	}
	names := map[string]bool{}
	for range clients {
		message, from := next(t, target)
		names[from.String()] = true
		_, err := target.WriteTo([]byte("re: "+message), from)
		check(t, err)
	}
	if len(names) != 3 {
		t.Errorf("the target saw %v", names)
	}
	for i, c := range clients {
		if got, _ := next(t, c); got != fmt.Sprintf("re: from %d", i) {
			t.Errorf("client %d got %q", i, got)
		}
	}

	// A recreated target is found again. More messages than its queue holds
	// arrive in order, although it reads late.
	check(t, target.Close())
	check(t, os.Remove(d+"/s"))
	target, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
	check(t, err)
	defer func() { check(t, target.Close()) }()
	check(t, target.SetDeadline(time.Now().Add(testkit.Patience)))
	var sending errgroup.Group
	sending.Go(func() error {
		for i := range 500 {
			if _, err := fmt.Fprintf(clients[0], "%d", i); err != nil {
				return err
			}
		}
		return nil
	})
	var answered net.Addr
	for i := range 500 {
		var got string
		if got, answered = next(t, target); got != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, got)
		}
	}
	check(t, sending.Wait())
	// As many replies follow, for a client that reads late: the target is
	// slowed down.
	sending.Go(func() error {
		for i := range 500 {
			if _, err := target.WriteTo([]byte(fmt.Sprint(i)), answered); err != nil {
				return err
			}
		}
		return nil
	})
	for i := range 500 {
		if got, _ := next(t, clients[0]); got != fmt.Sprint(i) {
			t.Fatalf("reply %d is %q", i, got)
		}
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
	target, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
	check(t, err)
	defer func() { check(t, target.Close()) }()
	check(t, target.SetDeadline(time.Now().Add(testkit.Patience)))
	relay := forward(t, d, "datagram:r", "datagram:s", "--max-connections", "2")
	for i := range 5 {
		c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: fmt.Sprintf("%s/c%d", d, i), Net: "unixgram"}, &net.UnixAddr{Name: d + "/r", Net: "unixgram"})
		check(t, err)
		defer func() { _ = c.Close() }()
		check(t, c.SetDeadline(time.Now().Add(testkit.Patience)))
		_, err = io.WriteString(c, "hello")
		check(t, err)
		_, from := next(t, target)
		_, err = target.WriteTo([]byte("re"), from)
		check(t, err)
		next(t, c)
		if status, _, stderr := run(t, d, "", "healthcheck", "--listen", "datagram:r"); status != 0 {
			t.Errorf("the health check printed %s", stderr)
		}
	}
	names, err := filepath.Glob(d + "/client.*")
	if check(t, err); len(names) > 2 {
		t.Errorf("the relay has the names %q", names)
	}
	relay.Terminate(t)
}

// A message of a client that sends and then closes is delivered, also to a
// target that starts later.
func TestForwardDeliversWhatAClientLeftBehind(t *testing.T) {
	t.Parallel()
	d := dir(t)
	relay := forward(t, d, "stream:r", "stream:s", "--retry", "20s")
	conn := dialAt(t, d, "stream:r")
	_, err := io.WriteString(conn, "so long")
	check(t, err)
	check(t, conn.Close())
	relay.Err.Await(t, 1, "connection from")
	heard := make(chan string, 1)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		text, _ := io.ReadAll(conn)
		heard <- string(text)
	})
	if got := <-heard; got != "so long" {
		t.Errorf("the target heard %q", got)
	}
}

// sendFile sends text and a descriptor over a connection.
func sendFile(t testing.TB, conn halfCloser, words string, f *os.File) {
	t.Helper()
	n, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte(words), unix.UnixRights(int(f.Fd())), nil)
	check(t, err)
	if n != len(words) {
		t.Fatalf("%d bytes went", n)
	}
}

// receiveFile receives text and a descriptor.
func receiveFile(conn halfCloser) (words string, f *os.File, err error) {
	buf, oob := make([]byte, 100), make([]byte, 100)
	n, oobn, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(buf, oob)
	if err != nil {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return string(buf[:n]), nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return string(buf[:n]), nil, err
	}
	return string(buf[:n]), os.NewFile(uintptr(fds[0]), "received"), nil
}

func TestForwardPassesFiles(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		d := dir(t)
		check(t, os.WriteFile(d+"/file", []byte("what is in it"), 0o600))
		serveAt(t, d, kind+":s", func(conn halfCloser) {
			for {
				words, f, err := receiveFile(conn)
				if err != nil || words == "" {
					return
				}
				_, _, _ = conn.(*net.UnixConn).WriteMsgUnix([]byte("back: "+words), unix.UnixRights(int(f.Fd())), nil)
				_ = f.Close()
			}
		})
		relay := forward(t, d, kind+":r", kind+":s", "--pass-files", "--show", "json")
		conn := dialAt(t, d, kind+":r")
		before := 0
		for i := range 10 {
			f, err := os.Open(d + "/file")
			check(t, err)
			sendFile(t, conn, "a file", f)
			check(t, f.Close())
			words, back, err := receiveFile(conn)
			check(t, err)
			content, err := io.ReadAll(back)
			check(t, err)
			check(t, back.Close())
			if words != "back: a file" || string(content) != "what is in it" {
				t.Errorf("%q with %q", words, content)
			}
			if i == 0 {
				before = openFiles(t, relay)
			}
		}
		testkit.Await(t, func() error { // some may be about to be closed
			if after := openFiles(t, relay); after > before {
				return fmt.Errorf("%s: %d descriptors are open, %d were", kind, after, before)
			}
			return nil
		})
		check(t, conn.Close())
		relay.Err.Await(t, 1, "connection ended")
		relay.Terminate(t)
		wantWords(t, relay.Out.String(), `"descriptors":["regular file"]`)
	}
}

func openFiles(t *testing.T, p *testkit.Process) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	check(t, err)
	return len(files)
}

func TestForwardEndsConnectionsWithFilesItMayNotPass(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"stream", "seqpacket"} {
		d := dir(t)
		heard := make(chan string, 1)
		serveAt(t, d, kind+":s", func(conn halfCloser) {
			text, _ := io.ReadAll(conn)
			heard <- string(text)
		})
		relay := forward(t, d, kind+":r", kind+":s")
		conn := dialAt(t, d, kind+":r")
		f, err := os.Open("/dev/null")
		check(t, err)
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("a file"), unix.UnixRights(int(f.Fd())), nil)
		check(t, f.Close())
		if sock.CanRefuseRights() {
			if !errors.Is(err, unix.EPERM) {
				t.Errorf("%s: the sender got %v", kind, err)
			}
			check(t, conn.Close())
			if got := <-heard; got != "" {
				t.Errorf("the target got %q", got)
			}
			continue
		}
		check(t, err)
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if got := <-heard; got != "" {
			t.Errorf("the target got %q", got)
		}
		relay.Err.Await(t, 1, "disconnected a client: the client's message carries file descriptors; --pass-files passes descriptors on")
	}
}

func TestForwardLogsWhyItDisconnects(t *testing.T) {
	t.Parallel()
	d := dir(t)
	accepted := make(chan bool, 10)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		accepted <- true
		_, _ = io.Copy(conn, conn)
	})
	echo := func(conn halfCloser) error {
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 5))
		return err
	}
	me := os.Geteuid()
	for _, tt := range []struct {
		args  []string
		words string
	}{
		{[]string{"--require-uid", fmt.Sprint(me + 1)}, fmt.Sprintf("stream:s: the server runs as user %d, not %d as --require-uid requires; nothing was sent", me, me+1)},
		{[]string{"--max-connections", "1"}, "connection limit (1) reached"},
		{[]string{"--idle-timeout", "10ms"}, "disconnected a client: nothing has passed for 10ms"},
	} {
		relay := forward(t, d, "stream:r", "stream:s", tt.args...)
		first := dialAt(t, d, "stream:r")
		if !strings.HasPrefix(tt.args[0], "--require") {
			check(t, echo(first))
		}
		if strings.HasPrefix(tt.args[0], "--max") {
			if err := echo(dialAt(t, d, "stream:r")); err == nil {
				t.Error("a second client was served")
			}
			if status, _, stderr := run(t, d, "", "healthcheck", "--listen", "r"); status != 0 {
				t.Errorf("the health check printed %s", stderr)
			}
			check(t, first.Close())
		} else if n, err := first.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%q: %d bytes, %v", tt.args, n, err)
		}
		relay.Err.Await(t, 1, tt.words)
		if status := relay.Terminate(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
		wantFiles(t, d, "s")
	}
}

func TestForwardServesConnectedClientsAfterSIGTERM(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "stream:s", func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
	relay := forward(t, d, "stream:r", "stream:s", "--log-level", "debug", "--mode", "0600")
	info, err := os.Lstat(d + "/r")
	check(t, err)
	if info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the mode is %v", info.Mode())
	}
	conn := dialAt(t, d, "stream:r")
	relay.Err.Await(t, 1, "connection from")
	relay.Signal(t, syscall.SIGTERM)
	relay.Err.Await(t, 1, "draining")
	testkit.Await(t, func() error { // its files are removed first
		if _, err := os.Lstat(d + "/r"); err == nil {
			return errors.New("the socket file is still there")
		}
		return nil
	})
	got, err := exchange(conn, strings.NewReader("hello"))
	if check(t, err); got != sha256.Sum256([]byte("hello")) {
		t.Error("received another echo")
	}
	if status := relay.Status(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

func TestForwardTakesItsSocketFromSystemd(t *testing.T) {
	t.Parallel()
	d := dir(t)
	serveAt(t, d, "stream:s", func(conn halfCloser) { _, _ = io.Copy(conn, conn) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d + "/r", Net: "unix"})
	check(t, err)
	f, err := l.File()
	check(t, err)
	relay := testkit.Prepare(t, d, "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`,
		testkit.Program("client"), "forward", "--connect", "s")
	relay.Cmd.ExtraFiles = []*os.File{f}
	early := dialAt(t, d, "stream:r") // before a relay runs
	relay.Start(t)
	check(t, f.Close())
	l.SetUnlinkOnClose(false)
	check(t, l.Close())
	got, err := exchange(early, strings.NewReader("hello"))
	if check(t, err); got != sha256.Sum256([]byte("hello")) {
		t.Error("received another echo")
	}
	relay.Terminate(t)
	wantFiles(t, d, "r", "s") // it belongs to the parent
}

func TestForwardListensOnTheLoopback(t *testing.T) {
	t.Parallel()
	d := dir(t)
	port := 20000 + mathrand.IntN(10000)
	for listen, warns := range map[string]bool{fmt.Sprintf("tcp::%d", port): false, fmt.Sprintf("tcp:0.0.0.0:%d", port+1): true} {
		relay := forward(t, d, listen, "stream:s")
		if !warns {
			wantWords(t, relay.Err.String(), fmt.Sprintf("starting up on 127.0.0.1:%d", port))
		}
		if got := strings.Contains(relay.Err.String(), "TCP does not know users"); got != warns {
			t.Errorf("%s: a warning: %v\n%s", listen, got, &relay.Err)
		}
		relay.Terminate(t)
	}
}

func TestForwardUsage(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, tt := range []struct{ args, words string }{
		{"", "missing flags: --connect"},
		{"--listen datagram:r --connect s", "datagram and stream do not join"},
		{"--listen files:r --connect files:s", "the relay joins stream and tcp"},
		{"--listen r --connect r", "the relay listens there itself"},
		{"--listen r --connect tcp:127.0.0.1:1 --pass-files", "--pass-files: no descriptors pass to tcp"},
		{"--listen tcp::7000 --connect s --pass-files", "--pass-files: no descriptors pass from tcp"},
		{"--listen tcp::7000 --connect s --allow-uid 1", "need a Unix socket"},
		{"--listen r --connect tcp:127.0.0.1:1 --require-uid 1", "the kernel does not report the server's user for a tcp socket"},
		{"--listen r --connect s --show text", "write hex, json, or the name of a file that ends in .pcapng"},
		{"--listen r --connect s --show hex --show-port 5432", "only a capture has ports; write --show FILE.pcapng"},
		{"--listen r --connect s --bind auto", "only sockets towards a datagram target have names"},
		{"--listen datagram:r --connect datagram:s --bind me", "write auto, DIR/ or none"},
		{"--listen r --connect s --retry=-1s", "choose 0s or more"},
	} {
		status, _, stderr := run(t, d, "", append([]string{"forward"}, strings.Fields(tt.args)...)...)
		if status != 2 || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit status %d, %q", tt.args, status, stderr)
		}
		wantWords(t, stderr, tt.words)
	}
	wantFiles(t, d)
}
