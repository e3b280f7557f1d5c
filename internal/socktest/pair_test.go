package socktest

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

func TestPairIsConnectedAndStaysWithinTheProcess(t *testing.T) {
	t.Parallel()
	own, other, err := sock.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	if own.Type() != sock.Stream {
		t.Errorf("the type is %s", own.Type())
	}
	if flags, err := unix.FcntlInt(other.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the other end is inherited by every program: flags %d, %v", flags, err)
	}
	if _, err := io.WriteString(other, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(own); err != nil || string(got) != "hello" {
		t.Errorf("received %q, %v", got, err)
	}
}
