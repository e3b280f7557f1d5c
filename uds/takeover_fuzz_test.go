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
	for _, s := range []string{takeoverHello, takeoverHello + " stream", takeoverHello + " stream files", takeoverMine, takeoverYours, takeoverServing, takeoverNo, "", "mine ", "min", "udsecho takeover 1 stream"} {
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
		ours, heard := overhear(t, said, int(n))
		types, fds, err := receiveHello(ours)
		if believed := err == nil; believed && (len(types) == 0 || len(fds) != 2*len(types)+1 || int(n) != len(fds)) || !believed && len(fds) > 0 {
			t.Errorf("of %q with %d descriptors %d are believed, for %q, %v", said, n, len(fds), types, err)
		}
		CloseFiles(fds...)
		_ = unix.Close(ours)
		heard()

		ours, heard = overhear(t, said, int(n))
		err = (&Handover{from: ours}).Claimed()
		// The end of the connection is a yes, too: the server is gone.
		if claimed := n == 0 && (word == takeoverYours || word == ""); claimed != (err == nil) {
			t.Errorf("claimed from a server that says %q with %d descriptors: %v", said, n, err)
		}
		_ = unix.Close(ours)
		heard()

		// And a server to a successor.
		want := Gone
		switch {
		case n > 0:
		case word == takeoverMine:
			want = Claims
		case word == takeoverServing:
			want = Serves
		}
		ours, heard = overhear(t, said, int(n))
		if step := (&Offer{fd: ours}).Next(); step != want {
			t.Errorf("the next step of a successor that says %q with %d descriptors is %d", said, n, step)
		}
		_ = unix.Close(ours)
		heard()
	})
}

// overhear gives one end of a connection at whose other end somebody has said
// something, with n descriptors, and gone. heard is to be called once that end is
// closed too, and checks that none of them is open.
func overhear(t *testing.T, said []byte, n int) (fd int, heard func()) {
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
