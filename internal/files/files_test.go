package files_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var patience = testkit.Patience

var (
	check     = testkit.Check
	wantWords = testkit.WantError
)

// running is a running server.
type running struct {
	addr  addr.Addr
	log   *testkit.Text
	stats *server.Stats
	files *files.Handler
	stop  func() // ends the server and waits
}

func serve(t *testing.T, drainTimeout time.Duration) *running {
	t.Helper()
	return serveAs(t, server.Config{DrainTimeout: drainTimeout}, files.Config{})
}

func serveAs(t *testing.T, acceptor server.Config, c files.Config) *running {
	t.Helper()
	r := &running{addr: addr.Addr{Type: addr.Files, Path: testkit.Dir(t) + "/f"}, log: new(testkit.Text), stats: new(server.Stats)}
	socket, err := addr.Listen(sock.ListenConfig{}, r.addr)
	check(t, err)
	acceptor.Log, acceptor.Stats = zerolog.New(r.log), r.stats
	srv, err := server.New(acceptor)
	check(t, err)
	r.files = files.New(srv, c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(ctx, server.Service{Socket: socket, Handler: r.files}); err != nil {
			t.Error(err)
		}
	}()
	r.stop = func() { cancel(); <-ended }
	t.Cleanup(r.stop)
	return r
}

func (r *running) dial(t *testing.T) *sock.Conn {
	t.Helper()
	conn, err := addr.Dial(t.Context(), r.addr, sock.DialConfig{})
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

var client = files.Client{Timeout: patience, Log: zerolog.Nop()}

// works checks that the server still reads the files of other clients.
func (r *running) works(t *testing.T) {
	t.Helper()
	check(t, files.Check(t.Context(), r.addr))
}

func content(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// memory returns a memfd that can still be changed.
func memory(t *testing.T, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	check(t, err)
	f := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { _ = f.Close() })
	check(t, f.Truncate(size))
	return f
}

func seal(t *testing.T, f *os.File, seals int) {
	t.Helper()
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	check(t, err)
}

const allSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

func TestSumIsOfTheWholeFile(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	conn := r.dial(t)
	for _, size := range []int{0, 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 16<<20 + 256<<10 + 1} {
		b := content(size)
		want := files.Sum{Size: int64(size), SHA256: sha256.Sum256(b)}
		sealed, err := files.Seal("sealed", bytes.NewReader(b))
		check(t, err)
		onDisk, err := os.CreateTemp(t.TempDir(), "")
		check(t, err)
		unsealed := memory(t, 0)
		for _, f := range []*os.File{onDisk, unsealed} {
			_, err := f.Write(b)
			check(t, err)
		}
		for _, f := range []*os.File{sealed, onDisk, unsealed} {
			got, err := client.Sum(t.Context(), conn, f)
			check(t, err)
			if got != want {
				t.Errorf("%s of %d bytes: got %s, want %s", f.Name(), size, got, want)
			}
			check(t, f.Close())
		}
	}
	if n := strings.Count(r.log.String(), `"mapped":0,`); n != 18-2 {
		t.Errorf("%d of 18 were not mapped at all, want all but the large sealed ones:\n%s", n, r.log)
	}
	r.log.Await(t, 1, fmt.Sprintf(`"mapped":%d,`, 16<<20+256<<10+1))
}

// Each page of a hole that the server touched would be charged to the server.
func TestHolesOfSealedMemoryAreNotFilled(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	f := memory(t, 256<<20)
	b := content(1 << 20)
	for _, at := range []int64{0, 100<<20 + 4096, 256<<20 - 4096} {
		_, err := f.WriteAt(b[:min(int64(len(b)), 256<<20-at)], at)
		check(t, err)
	}
	seal(t, f, allSeals)
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(f, 0, 256<<20))
	check(t, err)
	var before, after unix.Stat_t
	check(t, unix.Fstat(int(f.Fd()), &before))
	got, err := client.Sum(t.Context(), r.dial(t), f)
	check(t, err)
	check(t, unix.Fstat(int(f.Fd()), &after))
	if !bytes.Equal(got.SHA256[:], sum.Sum(nil)) {
		t.Errorf("the sum is %x", got.SHA256)
	}
	if before.Blocks != after.Blocks {
		t.Errorf("the memory had %d blocks, and has %d after it was read", before.Blocks, after.Blocks)
	}
	r.log.Await(t, 1, `"mapped":1`) // more digits follow: most of the data
}

// Both descriptors belong to one open file, with one offset.
func TestOffsetOfTheSenderStaysWhereItIs(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	b := content(1 << 20)
	for _, at := range []int64{0, 5, 1 << 20} {
		f, err := files.Seal("sealed", bytes.NewReader(b))
		check(t, err)
		_, err = f.Seek(at, io.SeekStart)
		check(t, err)
		_, err = client.Sum(t.Context(), r.dial(t), f)
		check(t, err)
		if now, err := f.Seek(0, io.SeekCurrent); now != at || err != nil {
			t.Errorf("the offset was %d, and is %d (%v)", at, now, err)
		}
		check(t, f.Close())
	}
	r.log.Await(t, 1, `"mapped":1048576,`)
}

// The server opens sealed memory a second time. Its owner can refuse that, or
// delay it by a lease, fcntl(2), F_SETLEASE. The server reads the memory
// anyway.
func TestSealedMemoryThatMustNotBeOpenedIsRead(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	b := content(1 << 20)
	sealed, err := files.Seal("sealed", bytes.NewReader(b))
	check(t, err)
	defer func() { check(t, sealed.Close()) }()
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", sealed.Fd()))
	check(t, err)
	defer func() { check(t, f.Close()) }()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	check(t, err)
	got, err := client.Sum(t.Context(), r.dial(t), f)
	check(t, err)
	if got.SHA256 != sha256.Sum256(b) {
		t.Errorf("the sum is %x", got.SHA256)
	}
	r.log.Await(t, 1, `"mapped":0,`)
}

func TestOtherDescriptorsAreRejectedAndTheConnectionContinues(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	conn := r.dial(t)
	open := func(path string, flags int) *os.File {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		check(t, err)
		return os.NewFile(uintptr(fd), path)
	}
	pipe, w, err := os.Pipe()
	check(t, err)
	defer func() { check(t, w.Close()) }()
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	check(t, err)
	for _, tt := range []struct {
		f     *os.File
		words string
	}{
		{pipe, "it is a pipe"},
		{os.NewFile(uintptr(socket), "socket"), "it is a socket"},
		{os.NewFile(uintptr(epoll), "epoll"), "it is a descriptor without a file"},
		{open("/", unix.O_RDONLY), "it is a directory"},
		{open("/dev/zero", unix.O_RDONLY), "it is a device"},
		{open("/proc/version", unix.O_RDONLY), "it is a file of the kernel, of proc"},
		{open("files_test.go", unix.O_PATH), "O_PATH"},
		{open(t.TempDir()+"/f", unix.O_WRONLY|unix.O_CREAT), "open for writing only"},
	} {
		_, err := client.Sum(t.Context(), conn, tt.f)
		wantWords(t, err, "the server rejected the file: ", tt.words)
		check(t, tt.f.Close())
		f, err := files.Seal("good", strings.NewReader("good"))
		check(t, err)
		_, err = client.Sum(t.Context(), conn, f)
		check(t, err)
		check(t, f.Close())
	}
}

func TestClientThatBreaksTheProtocolIsDisconnectedAndLeavesNothingOpen(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	turnedAway := 0
	for _, tt := range []struct {
		message string
		count   int
		words   string
	}{
		{"sum 1", 2, "more than one descriptor was received, and all are closed"},
		{"sum 1", 253, "more than one descriptor was received, and all are closed"},
		{"sum 1", 0, "no descriptor came"},
		{"", 0, "no descriptor came"},
		{"sum 2", 1, `unknown request 'sum 2': write "sum 1"`},
		{"sum 1\n", 1, `unknown request 'sum 1\n'`},
		{strings.Repeat("x", 1025), 1, "more than 1024 bytes"},
	} {
		conn := r.dial(t)
		mine, theirs, err := os.Pipe()
		check(t, err)
		fds := make([]int, tt.count)
		for i := range fds {
			fds[i] = int(theirs.Fd())
		}
		check(t, conn.SendFiles([]byte(tt.message), fds...))
		check(t, theirs.Close())
		receiver := sock.NewReceiver(1000)
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		answer, err := conn.Receive(receiver)
		check(t, err)
		wantWords(t, errors.New(string(answer)), "error ", tt.words)
		if _, err := conn.Receive(receiver); err != io.EOF {
			t.Errorf("then comes %v, not the end", err)
		}
		if n, err := mine.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a descriptor is still open: %d bytes, %v", n, err)
		}
		check(t, mine.Close())
		turnedAway++
	}
	r.log.Await(t, 1, "disconnected a client: ")
	for cause := range server.Causes {
		turnedAway -= int(r.stats.Refused(cause))
	}
	if turnedAway != 0 {
		t.Errorf("the difference of disconnected and counted clients is %d", turnedAway)
	}
	r.works(t)
}

// A page that was truncated away while it was mapped would kill this process.
func TestF16MemoryThatIsTruncatedWhileItIsRead(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	shorter := 0
	for i := range 100 {
		f := memory(t, 8<<20)
		_, err := f.WriteAt(content(8<<20), 0)
		check(t, err)
		seal(t, f, unix.F_SEAL_GROW) // not all required seals
		conn := r.dial(t)
		done := make(chan error, 1)
		go func() {
			_, err := client.Sum(t.Context(), conn, f)
			done <- err
		}()
		for size := int64(8<<20) - int64(i)*4096; size > 0; size -= 1 << 20 {
			check(t, f.Truncate(size))
		}
		if err := <-done; err != nil {
			wantWords(t, err, "it became shorter while it was read")
			shorter++
		}
		check(t, errors.Join(conn.Close(), f.Close()))
	}
	r.works(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F16", Done: "memory without F_SEAL_SHRINK handed over, and truncated while it is read", Count: 100,
		Outcome: fmt.Sprintf("the server lives and reads on: such memory is not mapped; %d senders were told that it became shorter", shorter),
	})
}

func TestReadingEndsWhenTheSenderLeaves(t *testing.T) {
	t.Parallel()
	r := serve(t, 0)
	for range 3 {
		f := memory(t, 1<<50)
		conn := r.dial(t)
		check(t, conn.SendFiles([]byte("sum 1"), int(f.Fd())))
		r.log.Await(t, 1, "received 'sum 1'")
		r.works(t) // meanwhile
		check(t, conn.Close())
	}
	r.log.Await(t, 1, "lost the connection: the client left before the answer")
}

func TestServerThatStopsLetsRequestsEndAndNoLongerThanTheDrainTimeout(t *testing.T) {
	t.Parallel()
	r := serve(t, 50*time.Millisecond)
	conn := r.dial(t)
	check(t, conn.SendFiles([]byte("sum 1"), int(memory(t, 1<<50).Fd())))
	r.log.Await(t, 1, "received 'sum 1'")
	r.stop()
	r.log.Await(t, 1, "drain timeout is over: closing all connections")
	if _, err := os.Lstat(r.addr.Path); !os.IsNotExist(err) {
		t.Errorf("the socket file is left (%v)", err)
	}
	if answer, err := conn.Receive(sock.NewReceiver(1000)); err == nil {
		t.Errorf("the answer is %q", answer)
	}

	// A client that was connected is served.
	r = serve(t, patience)
	conn = r.dial(t)
	ended := make(chan struct{})
	go func() { r.stop(); close(ended) }()
	testkit.Await(t, func() error {
		if _, err := os.Lstat(r.addr.Path); !os.IsNotExist(err) {
			return fmt.Errorf("%s is still there", r.addr.Path)
		}
		return nil
	})
	f := memory(t, 100)
	_, err := client.Sum(t.Context(), conn, f)
	check(t, err)
	check(t, conn.Close())
	<-ended
}

// The file of one client is about to be closed. Some clients are about to be
// received from, which may have to close files too, and some have requested
// nothing.
func TestF43StopDoesNotWaitForFilesWhoseClosingHangs(t *testing.T) {
	t.Parallel()
	const drainTimeout = 100 * time.Millisecond
	var took []time.Duration
	for range 5 {
		r := serve(t, drainTimeout)
		endless := r.dial(t)
		check(t, endless.SendFiles([]byte("sum 1"), int(memory(t, 1<<50).Fd())))
		r.log.Await(t, 1, "received 'sum 1'")
		var conns []*sock.Conn
		f := memory(t, 1)
		for range 8 {
			conn := r.dial(t)
			_, err := client.Sum(t.Context(), conn, f)
			check(t, err)
			conns = append(conns, conn)
		}
		end := r.files.Hang()
		for _, conn := range conns[:6] {
			check(t, conn.SendFiles([]byte("sum 1"), int(f.Fd())))
		}
		from, stopped := time.Now(), make(chan struct{})
		go func() { r.stop(); close(stopped) }()
		select {
		case <-stopped:
			took = append(took, time.Since(from))
		case <-time.After(patience):
			t.Errorf("it has not ended %v after it was told to stop", patience)
		}
		end()
		<-stopped
		if t.Failed() {
			return
		}
	}
	slices.Sort(took)
	median := took[len(took)/2]
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F43", Done: "a server of files told to stop while as many closes as may hang do, and clients wait behind them", Count: len(took),
		Outcome: fmt.Sprintf("it ends while they hang, with a drain timeout of %v after %.1f s", drainTimeout, median.Seconds()),
	})
}

// refused waits until this many clients were rejected for this cause.
func (r *running) refused(t *testing.T, cause string, want uint64) {
	t.Helper()
	r.log.Await(t, 1, `"cause":"`+cause+`"`)
	for c := range server.Causes {
		if n := r.stats.Refused(c); c.String() == cause && n != want {
			t.Errorf("%d were refused for %s, not %d", n, cause, want)
		}
	}
}

func TestLimitsHoldForFilesToo(t *testing.T) {
	t.Parallel()
	f := memory(t, 1)
	one := serveAs(t, server.Config{MaxConnections: 1, DrainTimeout: patience}, files.Config{})
	first, second := one.dial(t), one.dial(t)
	_, err := client.Sum(t.Context(), first, f)
	check(t, err)
	if n := one.stats.Connections.Load(); n != 1 {
		t.Errorf("%d connections are counted", n)
	}
	_, err = client.Sum(t.Context(), second, f)
	wantWords(t, err, "the server closed the connection without an answer")
	one.refused(t, "connections", 1)
	check(t, first.Close())
	testkit.Await(t, func() error {
		if n := one.stats.Connections.Load(); n > 0 {
			return fmt.Errorf("%d connections are counted", n)
		}
		return nil
	})
	one.works(t) // there is room again

	own := serveAs(t, server.Config{MaxConnectionsPerUser: 1, DrainTimeout: patience}, files.Config{})
	first, second = own.dial(t), own.dial(t)
	_, err = client.Sum(t.Context(), first, f)
	check(t, err)
	_, err = client.Sum(t.Context(), second, f)
	wantWords(t, err, "the server closed the connection without an answer")
	own.refused(t, "user_connections", 1)
	check(t, first.Close())

	idle := serveAs(t, server.Config{}, files.Config{IdleTimeout: 50 * time.Millisecond})
	_, err = idle.dial(t).Receive(sock.NewReceiver(100))
	check(t, err) // reads the reason
	idle.refused(t, "idle", 1)
}

func TestHealthCheckIsNotLogged(t *testing.T) {
	t.Parallel()
	r := serve(t, patience)
	check(t, files.Check(t.Context(), r.addr))
	testkit.Await(t, func() error { // a drain of open connections is logged
		if n := r.stats.Connections.Load(); n > 0 {
			return fmt.Errorf("%d connections are open", n)
		}
		return nil
	})
	r.stop()
	for line := range strings.Lines(r.log.String()) {
		if !strings.Contains(line, `"level":"debug"`) && !strings.Contains(line, "starting up") && !strings.Contains(line, "waiting for") {
			t.Errorf("the log has %s", line)
		}
	}
	wantWords(t, files.Check(t.Context(), r.addr), "no such file")
}

func TestClientRejectsInvalidAnswers(t *testing.T) {
	t.Parallel()
	d, err := os.MkdirTemp("", "uds")
	check(t, err)
	defer func() { check(t, os.RemoveAll(d)) }()
	socket, err := addr.Listen(sock.ListenConfig{}, addr.Addr{Type: addr.Files, Path: d + "/f"})
	check(t, err)
	defer func() { check(t, socket.Close()) }()
	check(t, unix.SetNonblock(socket.FD(), false))
	digits := strings.Repeat("0a", 32)
	for answer, words := range map[string]string{
		"":                          "the server is not a files: server",
		"sum 1":                     "the server is not a files: server",
		"sum 1 1 " + digits + "0":   "the server is not a files: server",
		"sum 1 1 " + digits[1:]:     "the server is not a files: server",
		"sum 1 -1 " + digits:        "the server is not a files: server",
		"sum 1 +1 " + digits:        "the server is not a files: server",
		"sum 1 x " + digits:         "the server is not a files: server",
		"sum 2 1 " + digits:         "the server is not a files: server",
		"sum 1 1 g" + digits[1:]:    "the server is not a files: server",
		"error \x1b[31m":            "rejected the file: \x1b[31m",
		strings.Repeat("sum", 1000): "message is larger",
	} {
		conn, err := addr.Dial(t.Context(), socket.Addr, sock.DialConfig{})
		check(t, err)
		fd, _, err := unix.Accept(socket.FD())
		check(t, err)
		check(t, unix.Sendto(fd, []byte(answer), 0, nil))
		_, err = client.Sum(t.Context(), conn, os.Stdin)
		wantWords(t, err, words)
		check(t, errors.Join(unix.Close(fd), conn.Close()))
	}
}
