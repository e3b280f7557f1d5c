package socktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// filesPair returns a connection over which files are sent to the receiver.
func filesPair(t *testing.T) (sender, receiver int) {
	t.Helper()
	sender, receiver = pair(t, sock.Seqpacket)
	check(t, sock.PassCred(receiver))
	return sender, receiver
}

// pipe returns the two ends of a pipe. The reader reads end of file when no
// process has a writer open any more.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

// wantClosed checks that no process has the other end of r open any more.
func wantClosed(t *testing.T, r *os.File) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor is still open: %d bytes, %v", n, err)
	}
}

func TestFilesArriveAsNewDescriptorsOfTheSameFiles(t *testing.T) {
	t.Parallel()
	a, b := filesPair(t)
	r, w := pipe(t)
	check(t, unix.Sendmsg(a, []byte("take these"), unix.UnixRights(int(w.Fd()), int(w.Fd())), nil, 0))
	check(t, w.Close())
	buf := make([]byte, 100)
	n, fds, cred, err := sock.ReceiveFiles(b, buf, 2)
	check(t, err)
	if string(buf[:n]) != "take these" || len(fds) != 2 || cred == nil || cred.Pid != int32(os.Getpid()) {
		t.Errorf("got %q with %v of %v", buf[:n], fds, cred)
	}
	for i, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != unix.FD_CLOEXEC {
			t.Errorf("flags are %#x (%v), not close-on-exec", flags, err)
		}
		_, err := unix.Write(fd, []byte{byte('0' + i)})
		check(t, err)
		check(t, unix.Close(fd))
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "01" {
		t.Errorf("through the descriptors came %q, %v", got, err)
	}
}

func TestConnSendsFiles(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{}, sock.Addr{Type: sock.Seqpacket, Path: dir(t) + "/f"})
	conn := dial(t, s.Addr())
	check(t, unix.SetNonblock(s.FD(), false))
	fd, _, err := unix.Accept(s.FD())
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	check(t, sock.PassCred(fd))
	r, w := pipe(t)
	check(t, conn.SendFiles([]byte("one"), int(w.Fd())))
	check(t, conn.SendFiles(nil)) // an empty record is not an end of file
	check(t, w.Close())
	n, fds, _, err := sock.ReceiveFiles(fd, make([]byte, 10), 1)
	if err != nil || n != 3 || len(fds) != 1 {
		t.Fatalf("%d bytes, %v, %v", n, fds, err)
	}
	check(t, unix.Close(fds[0]))
	wantClosed(t, r)
	if n, fds, _, err := sock.ReceiveFiles(fd, make([]byte, 10), 1); err != nil || n != 0 || len(fds) != 0 {
		t.Errorf("an empty record: %d bytes, %v, %v", n, fds, err)
	}
	if err := conn.SendFiles([]byte("many"), make([]int, 254)...); !errors.Is(err, unix.EINVAL) {
		t.Errorf("254 descriptors: %v", err)
	} else {
		wantWords(t, err.Error(), "254 descriptors: a message carries at most 253")
	}
	check(t, conn.Close())
	if _, _, _, err := sock.ReceiveFiles(fd, make([]byte, 10), 1); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
}

func TestRejectedDescriptorsAreClosed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		count, size int
		limit       int
		want        error
	}{
		{"one more", 3, 1, 2, sock.ErrDescriptors},
		{"two for one", 2, 1, 1, sock.ErrDescriptors},
		{"one for none", 1, 1, 0, sock.ErrDescriptors},
		{"as many as there can be", 253, 1, 1, sock.ErrDescriptors},
		{"long message", 1, 11, 1, sock.ErrTruncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b := filesPair(t)
			r, w := pipe(t)
			many := make([]int, tt.count)
			for i := range many {
				many[i] = int(w.Fd())
			}
			check(t, unix.Sendmsg(a, make([]byte, tt.size), unix.UnixRights(many...), nil, 0))
			check(t, w.Close())
			n, got, _, err := sock.ReceiveFiles(b, make([]byte, 10), tt.limit)
			if n != 0 || got != nil || !errors.Is(err, tt.want) {
				t.Errorf("%d bytes, %v, error %v, not %v", n, got, err, tt.want)
			}
			wantClosed(t, r)
			if _, _, _, err := sock.ReceiveFiles(b, make([]byte, 10), 1); err != unix.EAGAIN {
				t.Errorf("with nothing there the error is %v", err)
			}
		})
	}
}

func TestFilesAtTheLimitOfOpenFilesAreAnErrorThatPasses(t *testing.T) {
	t.Parallel()
	c := start(t, 0, nil, "full")
	if o := c.line(t); o != "no room for another open file: the limit is reached; close some, or raise it" {
		t.Errorf("at the limit: %s", o)
	}
	if o := c.line(t); o != "1 descriptors" {
		t.Errorf("below it: %s", o)
	}
	c.end(t)
}

// fullRole receives a descriptor when no descriptor number is free, and again
// later.
func fullRole([]string) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := sock.PassCred(pair[1]); err != nil {
		return err
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		return err
	}
	for _, limit := range []uint64{0, before.Cur} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			return err
		}
		if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(0), nil, 0); err != nil {
			return err
		}
		_, fds, _, err := sock.ReceiveFiles(pair[1], make([]byte, 10), 1)
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println(len(fds), "descriptors")
		}
	}
	return nil
}

// header returns an ancillary data header that claims this total length in
// bytes.
func header(length uint64, level, kind uint32) []byte {
	b := binary.NativeEndian.AppendUint64(nil, length)
	b = binary.NativeEndian.AppendUint32(b, level)
	return binary.NativeEndian.AppendUint32(b, kind)
}

func TestF15MalformedAncillaryData(t *testing.T) {
	t.Parallel()
	count := testkit.Count(100_000, 1_000_000)
	random := rand.New(rand.NewPCG(15, 15))
	malformed := 0
	for range count {
		control := append(unix.UnixCredentials(&unix.Ucred{Pid: 1}), unix.UnixRights(3, 4, 5)...)
		control = control[:random.IntN(len(control)+1)]
		for range random.IntN(4) {
			if len(control) > 0 {
				control[random.IntN(len(control))] = byte(random.Uint32())
			}
		}
		if _, _, err := sock.ParseControl(control); err != nil {
			malformed++
		}
	}
	if malformed == 0 {
		t.Error("nothing was malformed")
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F15", Done: "ancillary data cut short and altered at random; fuzzed besides (FuzzControl)", Count: count,
		Outcome: fmt.Sprintf("0 panics, %d found malformed", malformed),
	})
}

func FuzzControl(f *testing.F) {
	rights := unix.UnixRights(3, 4, 5)
	f.Add([]byte{})
	f.Add(rights)
	f.Add(rights[:len(rights)-4])
	f.Add(append(unix.UnixCredentials(&unix.Ucred{Pid: 1, Uid: 2, Gid: 3}), rights...))
	for _, length := range []uint64{0, 1, 15, 16, 17, 18, 19, 20, 21, 28, 1 << 31, 1<<63 - 1, 1<<64 - 1, 1<<64 - 8} {
		f.Add(append(header(length, unix.SOL_SOCKET, unix.SCM_RIGHTS), 1, 2, 3, 4, 5))
		f.Add(append(header(length, unix.SOL_SOCKET, unix.SCM_CREDENTIALS), 1, 2, 3, 4, 5))
		f.Add(header(length, 0, 0))
	}
	f.Fuzz(func(t *testing.T, control []byte) {
		given := bytes.Clone(control)
		fds, _, err := sock.ParseControl(control)
		if 4*len(fds) > len(control) {
			t.Errorf("%d descriptors in %d bytes", len(fds), len(control))
		}
		if !bytes.Equal(given, control) {
			t.Error("the data has changed")
		}
		// For valid data the library agrees; for invalid data it may panic.
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(control)
		if err != nil {
			t.Fatalf("the library returns %v", err)
		}
		var want []int
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS {
				theirs, err := unix.ParseUnixRights(&m)
				check(t, err)
				want = append(want, theirs...)
			}
		}
		if fmt.Sprint(want) != fmt.Sprint(fds) {
			t.Errorf("%v, but the library returns %v", fds, want)
		}
	})
}

func TestCredIsTheSendersAsReportedByTheKernel(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			s := listen(t, sock.ListenConfig{Mode: 0o666}, sock.Addr{Type: typ, Path: dir(t) + "/s"})
			check(t, sock.PassCred(s.FD()))
			child := start(t, stranger, nil, "send", s.Addr().String(), "hello")
			if o := child.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			fd := s.FD()
			if typ == sock.Seqpacket {
				var err error
				fd, _, err = unix.Accept(s.FD())
				check(t, err)
				defer func() { check(t, unix.Close(fd)) }()
				check(t, sock.PassCred(fd))
			}
			r := sock.NewReceiver(100)
			if _, ok := r.Cred(); ok {
				t.Error("there are credentials before there is a message")
			}
			message, err := r.ReceiveCred(fd)
			if err != nil || string(message) != "hello" {
				t.Fatalf("received %q, %v", message, err)
			}
			want := unix.Ucred{Pid: int32(child.cmd.Process.Pid), Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
			if os.Geteuid() == 0 {
				want.Uid, want.Gid = stranger, stranger
			}
			if cred, ok := r.Cred(); !ok || cred != want {
				t.Errorf("the sender is %+v (%t), not %+v", cred, ok, want)
			}
			child.end(t)
		})
	}
}

// pair returns two sockets of a type, connected to each other.
func pair(t *testing.T, typ sock.Type) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, sotypes[typ]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	t.Cleanup(func() {
		check(t, unix.Close(fds[0]))
		check(t, unix.Close(fds[1]))
	})
	return fds[0], fds[1]
}
