//go:build linux

package sock

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
)

// FuzzTakeover makes each side of a takeover receive arbitrary words from its
// peer, with any number of descriptors. Only the words of the protocol may
// have an effect, and no unexpected descriptor may stay open.
func FuzzTakeover(f *testing.F) {
	for _, s := range []string{wordOffer, wordOffer + " stream", wordOffer + " stream files", wordClaim, wordYield, wordCommit, wordRefuse, "", "claim ", "clai", "udsecho takeover 1 stream"} {
		for _, n := range []uint8{0, 1, 2, 3, 4, 253} {
			f.Add([]byte(s), n)
		}
	}
	f.Fuzz(func(t *testing.T, said []byte, n uint8) {
		if len(said) > 100_000 || n > 253 { // more than a message carries
			return
		}
		word := string(said)

		// A successor reads from a server.
		ours, heard := overhear(t, said, int(n))
		types, fds, err := receiveOffer(t.Context(), ours)
		if believed := err == nil; believed && (len(types) == 0 || len(fds) != 2*len(types)+1 || int(n) != len(fds)) || !believed && len(fds) > 0 {
			t.Errorf("of %q with %d descriptors %d are believed, for %q, %v", said, n, len(fds), types, err)
		}
		CloseFiles(fds...)
		_ = unix.Close(ours)
		heard()

		ours, heard = overhear(t, said, int(n))
		successor := &Handover{state: Claiming, peer: ours}
		_, err = successor.Step()
		// The end of the connection is a yes, too: the server has ended.
		if claimed := n == 0 && (word == wordYield || word == ""); claimed != (err == nil && successor.state == Claimed) {
			t.Errorf("claimed from a server that sends %q with %d descriptors: %v", said, n, err)
		}
		_ = unix.Close(ours)
		heard()

		// A server reads from a successor.
		for _, before := range []State{Offering, Yielding, Yielded} {
			want := Serving
			switch {
			case n > 0:
			case word == wordClaim && before == Offering:
				want = Yielding
			case word == wordCommit && before == Yielded:
				want = Released
			}
			ours, heard = overhear(t, said, int(n))
			server := &Handover{state: before, fd: -1, peer: ours}
			if state, err := server.Step(); err != nil || state != want {
				t.Errorf("after %q with %d descriptors the state is %d, was %d (%v)", said, n, state, before, err)
			}
			closeFD(&server.peer)
			heard()
		}
	})
}

// overhear returns one end of a connection whose other end has sent something,
// with n descriptors, and was closed. Call heard once the first end is closed
// too: it checks that none of the descriptors is open.
func overhear(t *testing.T, said []byte, n int) (fd int, heard func()) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	testkit.Check(t, err)
	r, w, err := os.Pipe() // the descriptors are copies of w: r reads end of file when all are closed
	testkit.Check(t, err)
	var rights []byte
	if n > 0 {
		rights = unix.UnixRights(slices.Repeat([]int{int(w.Fd())}, n)...)
	}
	testkit.Check(t, unix.Sendmsg(pair[1], said, rights, nil, 0))
	testkit.Check(t, unix.Close(pair[1]))
	testkit.Check(t, w.Close())
	return pair[0], func() {
		t.Helper()
		if !HungUp(int(r.Fd())) {
			t.Errorf("a descriptor that came with %q stays open", said)
		}
		testkit.Check(t, r.Close())
	}
}
