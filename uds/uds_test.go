package uds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/uds"
)

// This module needs nothing but golang.org/x/sys, so its tests have helpers of
// their own.

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dir makes a directory with a short path, because sun_path is short.
func dir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
	return d
}

func ls(t testing.TB, d string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(d)
	check(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantEmpty(t testing.TB, d string) {
	t.Helper()
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

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

func wantWords(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("the error is %q, without %q", fmt.Sprint(err), w)
		}
	}
}

// connected are the networks with connections.
var connected = []string{"unix", "unixpacket"}

func TestCloseFromSeveralGoroutines(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s, err := uds.ListenPacket("unixgram", d+"/s")
	check(t, err)
	named, err := uds.Dialer{Name: d + "/name"}.Dial("unixgram", d+"/s")
	check(t, err)
	for name, c := range map[string]io.Closer{
		"listener": listen(t, uds.ListenConfig{}, "unix", d+"/l"), "client": named, "datagrams": s,
	} {
		var all sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			spawn(&all, func() { errs[i] = c.Close() })
		}
		all.Wait()
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
	wantEmpty(t, d)
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
	if names := ls(t, d); len(names) > 2 {
		t.Errorf("left behind: %v", names)
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
		_, err := uds.Dial("unix", address)
		wantWords(t, err, "dial unix", words)
		if !errors.Is(err, uds.ErrAddress) {
			t.Errorf("%q: %v", address, err)
		}
		_, err = uds.Listen("unix", address)
		wantWords(t, err, "listen unix", words)
	}
	for _, err := range []error{
		second(uds.Dial("stream", d+"/s")), second(uds.Listen("unixgram", d+"/s")), second(uds.ListenPacket("unix", d+"/s")), second(uds.Listen("tcp", ":1")),
	} {
		var network net.UnknownNetworkError
		if !errors.As(err, &network) {
			t.Errorf("%v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestListenerHasDeadlinesAndItsDescriptor(t *testing.T) {
	t.Parallel()
	l := listen(t, uds.ListenConfig{}, "unix", dir(t)+"/s")
	check(t, l.SetDeadline(time.Now().Add(-time.Second)))
	_, err := l.Accept()
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v", err)
	}
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
		"accept": second(l.Accept()), "set": l.SetDeadline(time.Time{}), "file": second(l.File()), "raw-control": second(l.SyscallConn()),
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

		null, err := os.Open(os.DevNull)
		check(t, err)
		check(t, uds.SendFiles(client, []byte("too many"), null, null))
		check(t, null.Close())
		if _, files, err := uds.ReceiveFiles(server, buf, 1); !errors.Is(err, uds.ErrDescriptors) || files != nil {
			t.Errorf("%s: %v, %v", network, files, err)
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
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { _ = null.Close() }()
	done := make(chan error, 1)
	go func() { done <- errors.Join(uds.SendFiles(client, sent, null), client.Close()) }()
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
	_, err := uds.Listen("unix", d+"/s")
	if !errors.Is(err, uds.ErrInUse) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
	wantOp(t, err, "listen", d+"/s")
	wantWords(t, err, "stop it first or choose another path")
	_, err = uds.ListenPacket("unixgram", d+"/s")
	if !errors.Is(err, uds.ErrInUse) {
		t.Errorf("%v", err)
	}

	_, err = uds.Dial("unix", d+"/missing")
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, syscall.ENOENT) || !uds.NotThereYet(err) {
		t.Errorf("%v", err)
	}
	wantOp(t, err, "dial", d+"/missing")
	wantWords(t, err, "start the server first, or keep trying")

	_, err = uds.Dial("unixpacket", d+"/s")
	if !errors.Is(err, syscall.EPROTOTYPE) {
		t.Errorf("%v", err)
	}
	stale(t, d+"/stale")
	_, err = uds.Dial("unix", d+"/stale")
	if !errors.Is(err, syscall.ECONNREFUSED) || !uds.NotThereYet(err) {
		t.Errorf("%v", err)
	}
	wantWords(t, err, "start the server again, it replaces the file")

	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for name, err := range map[string]error{
		"dial": second(uds.Dialer{}.DialContext(ctx, "unix", d+"/s")), "listen": second(uds.ListenConfig{}.Listen(ctx, "unix", d+"/new")),
	} {
		var timeout net.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %v", name, err)
		}
	}
	check(t, l.Close())
}

func wantOp(t testing.TB, err error, op, address string) {
	t.Helper()
	if o, ok := err.(*net.OpError); !ok || o.Op != op || o.Addr.String() != address || strings.Count(o.Error(), op+" ") != 1 {
		t.Errorf("%T %v", err, err)
	}
}

// stale leaves the file of a socket that no process serves.
func stale(t testing.TB, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(t, err)
	l.SetUnlinkOnClose(false)
	check(t, l.Close())
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
	wantEmpty(t, d)

	check(t, os.WriteFile(d+"/s", []byte("precious"), 0o600))
	if _, err := uds.Listen("unix", d+"/s"); !errors.Is(err, uds.ErrNotSocket) {
		t.Errorf("%v", err)
	}
	check(t, os.Remove(d+"/s"))
	wantEmpty(t, d)

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
	var all sync.WaitGroup
	errs := make([]error, 8)
	listeners := make([]net.Listener, len(errs))
	for i := range errs {
		spawn(&all, func() { listeners[i], errs[i] = uds.Listen("unix", path) })
	}
	all.Wait()
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
	if _, err := (uds.ListenConfig{Control: func(string, string, syscall.RawConn) error { return failed }}).Listen(t.Context(), "unix", d+"/s"); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if got := strings.Join(called, ", "); got != "unix s, unix s" {
		t.Errorf("called for %s", got)
	}
	wantEmpty(t, d)
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
	wantEmpty(t, d)
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
	if _, err := uds.PeerCred(one); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
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

func TestAutoName(t *testing.T) {
	t.Parallel()
	if a, b := uds.AutoName("/tmp"), uds.AutoName("/tmp"); a == b || !strings.HasPrefix(a, "/tmp/client.") || !strings.HasPrefix(uds.AutoName("@"), "@client.") {
		t.Errorf("%s, %s", a, b)
	}
}

// An importer compiles on systems that have no takeover.
func TestCompilesElsewhere(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it compiles the package for other systems")
	}
	for _, system := range []string{"darwin", "freebsd", "openbsd", "windows"} {
		cmd := exec.Command("go", "vet", ".")
		cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}

// spawn is sync.WaitGroup.Go, which Go 1.24 does not have.
func spawn(all *sync.WaitGroup, f func()) {
	all.Add(1)
	go func() {
		defer all.Done()
		f()
	}()
}
