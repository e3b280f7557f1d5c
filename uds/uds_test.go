package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/uds"
	"github.com/udsecho/udsecho/uds/internal/testkit"
)

var (
	check     = testkit.Check
	dir       = testkit.Dir
	stale     = testkit.Stale
	wantError = testkit.WantError
	wantFiles = testkit.WantFiles
)

func listen(t testing.TB, c uds.ListenConfig, network, address string) *uds.Listener {
	t.Helper()
	l, err := c.Listen(t.Context(), network, address)
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l.(*uds.Listener)
}

// connect returns both ends of a connection.
func connect(t testing.TB, network string) (client, server net.Conn) {
	t.Helper()
	l := listen(t, uds.ListenConfig{}, network, dir(t)+"/s")
	client, err := uds.Dial(network, l.Addr().String())
	check(t, err)
	t.Cleanup(func() { _ = client.Close() })
	server, err = l.Accept()
	check(t, err)
	t.Cleanup(func() { _ = server.Close() })
	return client, server
}

// connected are the networks with connections.
var connected = []string{"unix", "unixpacket"}

// Whichever of the calls returns first, the file is gone then: a program that
// defers one and calls the other at SIGTERM ends without it.
func TestCloseFromSeveralGoroutines(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s, err := uds.ListenPacket("unixgram", d+"/s")
	check(t, err)
	named, err := uds.Dialer{Name: d + "/name"}.Dial("unixgram", d+"/s")
	check(t, err)
	for name, c := range map[string]io.Closer{
		"l": listen(t, uds.ListenConfig{}, "unix", d+"/l"), "name": named, "s": s,
	} {
		var errs [8]error
		testkit.Go(len(errs), func(i int) {
			errs[i] = c.Close()
			if _, err := os.Lstat(d + "/" + name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is still there after Close (%v)", name, err)
			}
		})
		closed := 0
		for _, err := range errs {
			if err == nil {
				closed++
			} else if op, ok := err.(*net.OpError); !ok || op.Op != "close" || !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: %T %v", name, err, err)
			}
		}
		if closed != 1 {
			t.Errorf("%s: %d calls have closed it", name, closed)
		}
	}
	wantFiles(t, d)
}

// dialer is how other packages take a dial function.
func dialer(address string) (net.Conn, error) { return uds.Dial("unix", address) }

func TestFailedDialReturnsNil(t *testing.T) {
	t.Parallel()
	if c, err := dialer(dir(t) + "/s"); c != nil || err == nil {
		t.Errorf("%v, %v", c, err)
	}
	if l, err := uds.Listen("unix", "/dev/null"); l != nil || err == nil {
		t.Errorf("%v, %v", l, err)
	}
	if p, err := uds.ListenPacket("unixgram", "/dev/null"); p != nil || err == nil {
		t.Errorf("%v, %v", p, err)
	}
}

func TestConnectionsAreThoseOfPackageNet(t *testing.T) {
	t.Parallel()
	for _, network := range connected {
		client, server := connect(t, network)
		for _, c := range []net.Conn{client, server} {
			if _, ok := c.(*net.UnixConn); !ok {
				t.Errorf("%s: %T", network, c)
			}
		}
	}
}

// A client with a name of its own, too, has all that package net looks for.
func TestBuffersAreOneRecord(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, uds.ListenConfig{}, "unixpacket", d+"/s")
	client, err := uds.Dialer{Name: d + "/name"}.Dial("unixpacket", d+"/s")
	check(t, err)
	defer func() { _ = client.Close() }()
	server, err := l.Accept()
	check(t, err)
	defer func() { _ = server.Close() }()
	if got := server.RemoteAddr().String(); got != d+"/name" {
		t.Errorf("the client is %s", got)
	}

	buffers := net.Buffers{[]byte("one "), []byte("record")}
	_, err = buffers.WriteTo(client)
	check(t, err)
	got := make([]byte, 100)
	n, err := server.Read(got)
	check(t, err)
	if string(got[:n]) != "one record" {
		t.Errorf("the record is %q", got[:n])
	}
	if _, ok := client.(interface {
		File() (*os.File, error)
		CloseRead() error
		SetReadBuffer(int) error
		ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
	}); !ok {
		t.Errorf("%T lacks methods", client)
	}
	check(t, client.Close())
	if _, err := os.Lstat(d + "/name"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its name is left behind: %v", err)
	}
}

func TestAddressIsDialable(t *testing.T) {
	t.Parallel()
	for _, network := range connected {
		l := listen(t, uds.ListenConfig{}, network, dir(t)+"/s")
		if _, ok := l.Addr().(*net.UnixAddr); !ok {
			t.Errorf("%T", l.Addr())
		}
		c, err := net.Dial(l.Addr().Network(), l.Addr().String())
		check(t, err)
		check(t, c.Close())
	}
}

func TestForms(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, uds.ListenConfig{}, "unix", "unix://"+d+"/s")
	if l.Addr().String() != d+"/s" {
		t.Errorf("it is %s", l.Addr())
	}
	for _, address := range []string{d + "/s", "unix:" + d + "/s", "unix://" + d + "/s"} {
		c, err := uds.Dial("unix", address)
		check(t, err)
		check(t, c.Close())
	}
	for address, words := range map[string]string{
		"":                       "the path is empty",
		"@":                      "the path is empty",
		"unix:":                  "the path is empty",
		d + "/":                  "name the socket file in it",
		"a\x00b":                 "NUL byte",
		"unix://run/s":           "write unix:///run/s or unix:run/s",
		strings.Repeat("s", 200): fmt.Sprintf("path is 200 bytes, sun_path holds %d", uds.MaxPath),
	} {
		wantError(t, testkit.Err(uds.Dial("unix", address)), uds.ErrAddress, "dial unix", words)
		wantError(t, testkit.Err(uds.Listen("unix", address)), uds.ErrAddress, "listen unix", words)
	}
	for _, err := range []error{
		testkit.Err(uds.Dial("stream", d+"/s")), testkit.Err(uds.Listen("unixgram", d+"/s")), testkit.Err(uds.ListenPacket("unix", d+"/s")), testkit.Err(uds.Listen("tcp", ":1")),
	} {
		var network net.UnknownNetworkError
		if !errors.As(err, &network) {
			t.Errorf("%v", err)
		}
	}
}

func TestListenerHasDeadlinesAndItsDescriptor(t *testing.T) {
	t.Parallel()
	l := listen(t, uds.ListenConfig{}, "unix", dir(t)+"/s")
	check(t, l.SetDeadline(time.Now().Add(-time.Second)))
	wantTimeout(t, testkit.Err(l.Accept()), os.ErrDeadlineExceeded)
	check(t, l.SetDeadline(time.Time{}))
	f, err := l.File()
	check(t, err)
	check(t, f.Close())
	raw, err := l.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(uintptr) {}))
	c, err := uds.Dial("unix", l.Addr().String())
	check(t, err)
	defer func() { _ = c.Close() }()
	a, err := l.AcceptUnix()
	check(t, err)
	check(t, a.Close())

	check(t, l.Close())
	for name, err := range map[string]error{
		"accept": testkit.Err(l.Accept()), "set": l.SetDeadline(time.Time{}), "file": testkit.Err(l.File()), "raw-control": testkit.Err(l.SyscallConn()),
	} {
		if op, ok := err.(*net.OpError); !ok || op.Op != name || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesOnAcceptedConnections(t *testing.T) {
	t.Parallel()
	for _, network := range connected {
		client, server := connect(t, network)
		buf := make([]byte, 100)
		check(t, server.SetReadDeadline(time.Now().Add(-time.Second)))
		if _, _, err := uds.ReceiveFiles(server, buf, 2); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", network, err)
		}
		check(t, server.SetReadDeadline(time.Time{}))

		r, w, err := os.Pipe()
		check(t, err)
		check(t, uds.SendFiles(client, []byte("two"), r, w))
		check(t, r.Close())
		check(t, w.Close())
		n, files, err := uds.ReceiveFiles(server, buf, 2)
		check(t, err)
		if len(files) != 2 || string(buf[:n]) != "two" {
			t.Fatalf("%d files, %q", len(files), buf[:n])
		}
		_, err = files[1].WriteString("through both")
		check(t, err)
		check(t, files[1].Close())
		got, err := io.ReadAll(files[0])
		check(t, err)
		check(t, files[0].Close())
		if string(got) != "through both" {
			t.Errorf("%q", got)
		}

		check(t, uds.SendFiles(client, []byte("too many"), os.Stdin, os.Stdin))
		if _, files, err := uds.ReceiveFiles(server, buf, 1); !errors.Is(err, uds.ErrDescriptors) || files != nil {
			t.Errorf("%s: %v, %v", network, files, err)
		}
		check(t, uds.SendFiles(client, nil, os.Stdin)) // a stream needs a byte to carry it
		if n, files, err := uds.ReceiveFiles(server, buf, 1); err != nil || n != 1 || len(files) != 1 || files[0].Close() != nil {
			t.Errorf("%s: %d bytes, %v, %v", network, n, files, err)
		}
		check(t, client.Close())
		if _, _, err := uds.ReceiveFiles(server, buf, 1); err != io.EOF {
			t.Errorf("%s: %v", network, err)
		}
	}
}

// A stream takes a part of it at a time.
func TestFilesWithALargeMessage(t *testing.T) {
	t.Parallel()
	client, server := connect(t, "unix")
	sent := make([]byte, 4<<20)
	done := make(chan error, 1)
	go func() { done <- errors.Join(uds.SendFiles(client, sent, os.Stdin), client.Close()) }()
	buf := make([]byte, 1000)
	n, files, err := uds.ReceiveFiles(server, buf, 1)
	check(t, err)
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	check(t, files[0].Close())
	rest, err := io.Copy(io.Discard, server)
	check(t, err)
	check(t, <-done)
	if int64(n)+rest != int64(len(sent)) {
		t.Errorf("%d bytes of %d", int64(n)+rest, len(sent))
	}
}

func TestErrorsAreThoseOfPackageNetAndNameTheCure(t *testing.T) {
	t.Parallel()
	d := dir(t)
	l := listen(t, uds.ListenConfig{}, "unix", d+"/s")
	err := testkit.Err(uds.Listen("unix", d+"/s"))
	wantError(t, err, uds.ErrInUse, "stop it first or choose another path")
	wantError(t, err, syscall.EADDRINUSE)
	wantOp(t, err, "listen", d+"/s")
	wantError(t, testkit.Err(uds.ListenPacket("unixgram", d+"/s")), uds.ErrInUse)
	wantError(t, testkit.Err(uds.Dial("unixpacket", d+"/s")), syscall.EPROTOTYPE)

	stale(t, d+"/stale")
	for _, tt := range []struct {
		name  string
		errno error
		cure  string
	}{
		{"missing", syscall.ENOENT, "start the server first, or keep trying"},
		{"stale", syscall.ECONNREFUSED, "start the server again, it replaces the file"},
	} {
		err := testkit.Err(uds.Dial("unix", d+"/"+tt.name))
		wantError(t, err, tt.errno, tt.cure)
		wantOp(t, err, "dial", d+"/"+tt.name)
		if !uds.NotThereYet(err) || errors.Is(err, fs.ErrNotExist) != (tt.errno == syscall.ENOENT) {
			t.Errorf("%v", err)
		}
	}

	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, err := range []error{
		testkit.Err(uds.Dialer{}.DialContext(ctx, "unix", d+"/s")), testkit.Err(uds.ListenConfig{}.Listen(ctx, "unix", d+"/new")),
	} {
		wantTimeout(t, err, context.DeadlineExceeded)
	}
	check(t, l.Close())
}

// wantTimeout checks that an error is target, and a timeout to package net.
func wantTimeout(t testing.TB, err, target error) {
	t.Helper()
	wantError(t, err, target)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
}

func wantOp(t testing.TB, err error, op, address string) {
	t.Helper()
	if o, ok := err.(*net.OpError); !ok || o.Op != op || o.Addr.String() != address || strings.Count(o.Error(), op+" ") != 1 {
		t.Errorf("%T %v", err, err)
	}
}

func TestListenReplacesAStaleSocketAndNothingElse(t *testing.T) {
	t.Parallel()
	d := dir(t)
	stale(t, d+"/s")
	check(t, listen(t, uds.ListenConfig{Mode: 0o600}, "unix", d+"/s").Close())
	stale(t, d+"/s")
	p, err := uds.ListenPacket("unixgram", d+"/s")
	check(t, err)
	check(t, p.Close())
	wantFiles(t, d)

	check(t, os.WriteFile(d+"/s", []byte("precious"), 0o600))
	wantError(t, testkit.Err(uds.Listen("unix", d+"/s")), uds.ErrNotSocket)
	check(t, os.Remove(d+"/s"))
	wantFiles(t, d)

	l := listen(t, uds.ListenConfig{}, "unix", d+"/s")
	check(t, os.Remove(d+"/s"))
	check(t, os.WriteFile(d+"/s", []byte("precious"), 0o600))
	check(t, l.Close())
	if _, err := os.Stat(d + "/s"); err != nil {
		t.Errorf("it removed another's file: %v", err)
	}
}

func TestOneOfManyStartersWins(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	stale(t, path)
	var errs [8]error
	var listeners [len(errs)]net.Listener
	testkit.Go(len(errs), func(i int) { listeners[i], errs[i] = uds.Listen("unix", path) })
	won := 0
	for i, err := range errs {
		switch {
		case err == nil:
			won++
			defer func() { check(t, listeners[i].Close()) }()
		case !errors.Is(err, uds.ErrInUse):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d listen", won)
	}
}

func TestModeAndControl(t *testing.T) {
	t.Parallel()
	d := dir(t)
	var called []string
	note := func(network, address string, c syscall.RawConn) error {
		called = append(called, network+" "+filepath.Base(address))
		return c.Control(func(uintptr) {})
	}
	l := listen(t, uds.ListenConfig{Mode: 0o642, Control: note}, "unix", d+"/s")
	info, err := os.Stat(d + "/s")
	check(t, err)
	if info.Mode().Perm() != 0o642 {
		t.Errorf("mode %04o", info.Mode().Perm())
	}
	c, err := uds.Dialer{Control: note}.Dial("unix", d+"/s")
	check(t, err)
	check(t, c.Close())
	check(t, l.Close())
	failed := errors.New("no")
	_, err = uds.ListenConfig{Control: func(string, string, syscall.RawConn) error { return failed }}.Listen(t.Context(), "unix", d+"/s")
	wantError(t, err, failed)
	if got := strings.Join(called, ", "); got != "unix s, unix s" {
		t.Errorf("called for %s", got)
	}
	wantFiles(t, d)
}

// Not parallel: it changes the directory of the process.
func TestRelativePathIsRemovedFromAnotherDirectory(t *testing.T) {
	d := dir(t)
	t.Chdir(d)
	l := listen(t, uds.ListenConfig{}, "unix", "s")
	p, err := uds.ListenPacket("unixgram", "p")
	check(t, err)
	c, err := uds.Dialer{Name: "name"}.Dial("unixgram", "p")
	check(t, err)
	t.Chdir("/")
	check(t, l.Close())
	check(t, p.Close())
	check(t, c.Close())
	wantFiles(t, d)
}

func TestPeerCred(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("Windows reports none")
	}
	client, server := connect(t, "unix")
	for _, c := range []net.Conn{client, server} {
		cred, err := uds.PeerCred(c)
		if err != nil || cred.UID != os.Geteuid() || cred.GID != os.Getegid() || cred.PID != os.Getpid() {
			t.Errorf("%+v, %v", cred, err)
		}
	}
	one, other := net.Pipe()
	defer func() { _, _ = one.Close(), other.Close() }()
	wantError(t, testkit.Err(uds.PeerCred(one)), errors.ErrUnsupported)
}

func TestPair(t *testing.T) {
	t.Parallel()
	own, other, err := uds.Pair()
	check(t, err)
	_, err = other.WriteString("hello")
	check(t, err)
	check(t, other.Close())
	got, err := io.ReadAll(own)
	if err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	check(t, own.Close())
}

func TestAutoNameIsUniqueAndShort(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		name := uds.AutoName("/run/uds")
		rest, ok := strings.CutPrefix(name, "/run/uds/client.")
		if seen[name] || !ok || len(rest) > 33 || !strings.Contains(rest, fmt.Sprintf(".%d.", os.Getpid())) {
			t.Fatalf("name is %s", name)
		}
		seen[name] = true
	}
	if name := uds.AutoName("@"); !strings.HasPrefix(name, "@client.") {
		t.Errorf("abstract name is %s", name)
	}
	if name := uds.AutoName("."); strings.Contains(name, "/") {
		t.Errorf("name in this directory is %s", name)
	}
}
