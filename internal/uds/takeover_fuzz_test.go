package uds

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzTakeover has each side of a takeover listen to a peer that says anything,
// with any number of descriptors: only the words of the protocol are believed,
// and of what else comes along nothing stays open.
func FuzzTakeover(f *testing.F) {
	for _, s := range []string{takeoverHello, takeoverHello + "stream", takeoverHello + "files", takeoverMine, takeoverDone, takeoverNo, "", "mine ", "min", "udsecho takeover 2"} {
		for _, n := range []uint8{0, 1, 2, 3, 4, 253} {
			f.Add([]byte(s), n)
		}
	}
	f.Fuzz(func(t *testing.T, said []byte, n uint8) {
		if len(said) > 100_000 || n > 253 { // more than a message carries
			return
		}
		word := string(said)

		// A successor listens to a server.
		ours, heard := hear(t, said, int(n))
		fds, err := receiveHello(ours, Stream)
		if believed := word == takeoverHello+"stream" && n == 3; believed != (err == nil) || len(fds) > 0 != believed {
			t.Errorf("of %q with %d descriptors %d are believed, %v", said, n, len(fds), err)
		}
		CloseFiles(fds...)
		_ = unix.Close(ours)
		heard()

		ours, heard = hear(t, said, int(n))
		s := newSocket(Addr{Stream, "s"})
		s.claim = ours
		err = s.Refused()
		if refused := word == takeoverNo && n == 0; refused != (err != nil) {
			t.Errorf("claimed from one who says %q with %d descriptors: %v", said, n, err)
		}
		_ = unix.Close(ours)
		heard()

		// And a server to a successor.
		ours, heard = hear(t, said, int(n))
		taken, err := (&Offer{FD: ours}).Taken()
		if taken || err == nil { // whatever it says, it has gone
			t.Errorf("one who says %q with %d descriptors has taken it: %t, %v", said, n, taken, err)
		}
		_ = unix.Close(ours)
		heard()
	})
}

// hear gives one end of a connection at whose other end somebody has said
// something, with n descriptors, and gone. heard is to be called once that end is
// closed too, and checks that none of them is open.
func hear(t *testing.T, said []byte, n int) (fd int, heard func()) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	check(err)
	r, w, err := os.Pipe() // of which they are the writing end: when all are closed it says so
	check(err)
	var rights []byte
	if n > 0 {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(w.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	check(unix.Sendmsg(pair[1], said, rights, nil, 0))
	check(unix.Close(pair[1]))
	check(w.Close())
	return pair[0], func() {
		t.Helper()
		poll := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(poll, 0)
		check(err)
		if poll[0].Revents&unix.POLLHUP == 0 {
			t.Errorf("a descriptor that came with %q stays open", said)
		}
		check(r.Close())
	}
}
