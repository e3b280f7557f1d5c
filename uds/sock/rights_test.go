//go:build linux

package sock_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
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

func TestFilesArriveAsNewDescriptorsOfTheSameFiles(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, sock.ListenConfig{}, seqpacket(d+"/f"))
	conn := dial(t, s.Addr())
	fd := accept(t, s.Addr(), s.FD())
	check(t, unix.SetNonblock(fd, true))
	check(t, sock.PassCred(fd))
	r, w := pipe(t)
	check(t, conn.SendFiles([]byte("take these"), int(w.Fd()), int(w.Fd())))
	check(t, conn.SendFiles(nil)) // an empty record is not an end of file
	check(t, w.Close())
	buf := make([]byte, 100)
	n, fds, cred, err := sock.ReceiveFiles(fd, buf, 2)
	wantMessage(t, "take these", buf[:n], err)
	if len(fds) != 2 || cred == nil || cred.Pid != int32(os.Getpid()) {
		t.Errorf("got %v of %v", fds, cred)
	}
	for i, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != unix.FD_CLOEXEC {
			t.Errorf("flags are %#x (%v), not close-on-exec", flags, err)
		}
		check(t, testkit.Err(unix.Write(fd, []byte{byte('0' + i)})))
		check(t, unix.Close(fd))
	}
	got, err := io.ReadAll(r)
	wantMessage(t, "01", got, err)
	if n, fds, _, err := sock.ReceiveFiles(fd, buf, 1); err != nil || n != 0 || len(fds) != 0 {
		t.Errorf("an empty record: %d bytes, %v, %v", n, fds, err)
	}
	wantError(t, conn.SendFiles([]byte("many"), make([]int, 254)...), unix.EINVAL, "254 descriptors: a message carries at most 253")
	check(t, conn.CloseWrite())
	if _, _, _, err := sock.ReceiveFiles(fd, buf, 1); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
}

// To an address, too, as replies to datagrams are sent.
func TestFilesInADatagram(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	to := listen(t, sock.ListenConfig{}, datagram(path))
	from := socket(t, sock.Datagram)
	for _, message := range []string{"with a file", ""} {
		r, w := pipe(t)
		check(t, testkit.Err(sock.SendFiles(from, []byte(message), []int{int(w.Fd())}, sock.Path(path))))
		check(t, w.Close())
		receiver := sock.NewReceiver(100)
		receiver.TakeRights()
		got, err := receiver.ReceiveFiles(to.FD())
		wantMessage(t, message, got, err)
		if fds := receiver.Files(); len(fds) != 1 {
			t.Errorf("%d descriptors", len(fds))
		} else {
			sock.CloseFiles(fds...)
		}
		check(t, testkit.Err(io.ReadAll(r)))
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
			check(t, unix.Sendmsg(a, make([]byte, tt.size), copies(tt.count, w), nil, 0))
			check(t, w.Close())
			n, got, _, err := sock.ReceiveFiles(b, make([]byte, 10), tt.limit)
			if n != 0 || got != nil || !errors.Is(err, tt.want) {
				t.Errorf("%d bytes, %v, error %v, not %v", n, got, err, tt.want)
			}
			if n, err := r.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("a descriptor is still open: %d bytes, %v", n, err)
			}
			if _, _, _, err := sock.ReceiveFiles(b, make([]byte, 10), 1); err != unix.EAGAIN {
				t.Errorf("with nothing there the error is %v", err)
			}
		})
	}
}

// Not parallel: no other test may need a descriptor meanwhile.
func TestFilesAtTheLimitOfOpenFilesAreAnErrorThatPasses(t *testing.T) {
	a, b := filesPair(t)
	var before unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	receive := func(limit uint64) ([]int, error) {
		check(t, unix.Sendmsg(a, []byte("x"), copies(1, os.Stdin), nil, 0))
		check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}))
		_, fds, _, err := sock.ReceiveFiles(b, make([]byte, 10), 1)
		return fds, errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	}
	_, err := receive(0)
	wantError(t, err, sock.ErrOpenFiles, "no room for another open file: the limit is reached; close some, or raise it")
	fds, err := receive(before.Cur)
	if err != nil || len(fds) != 1 {
		t.Errorf("below it: %d descriptors, %v", len(fds), err)
	}
	sock.CloseFiles(fds...)
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
	testkit.ReportFault(t, "F15", count, "ancillary data cut short and altered at random; fuzzed besides (FuzzControl)",
		fmt.Sprintf("0 panics, %d found malformed", malformed))
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
		if !slices.Equal(want, fds) {
			t.Errorf("%v, but the library returns %v", fds, want)
		}
	})
}

func TestCredIsTheSendersAsReportedByTheKernel(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		s := listen(t, sock.ListenConfig{Mode: 0o666}, sock.Addr{Type: typ, Path: dir(t) + "/s"})
		check(t, sock.PassCred(s.FD()))
		child := start(t, testkit.Stranger, "dial", s.Addr().String(), "", "hello")
		child.Do(t)
		fd := accept(t, s.Addr(), s.FD())
		check(t, sock.PassCred(fd))
		r := sock.NewReceiver(100)
		if _, ok := r.Cred(); ok {
			t.Error("there are credentials before there is a message")
		}
		message, err := r.ReceiveCred(fd)
		wantMessage(t, "hello", message, err)
		want := unix.Ucred{Pid: int32(child.Cmd.Process.Pid), Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
		if os.Geteuid() == 0 {
			want.Uid, want.Gid = testkit.Stranger, testkit.Stranger
		}
		if cred, ok := r.Cred(); !ok || cred != want {
			t.Errorf("the sender is %+v (%t), not %+v", cred, ok, want)
		}
		child.End(t)
	}
}
