package echo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// servePair serves one end of a socketpair; ended gets what ServeConn returns.
func servePair(t *testing.T, ctx context.Context, log zerolog.Logger) (conn *sock.Conn, ended <-chan error) {
	t.Helper()
	conn, other, err := sock.Pair()
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	fd, err := unix.FcntlInt(other.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	check(t, err)
	check(t, other.Close())
	result := make(chan error, 1)
	go func() { result <- (config{Chunk: 16, Log: log}).ServeConn(ctx, fd) }()
	return conn, result
}

func TestServeConnServesOneConnectionToItsEnd(t *testing.T) {
	t.Parallel()
	log := newJournal()
	conn, ended := servePair(t, t.Context(), log.Logger(zerolog.InfoLevel))
	wantEcho(t, conn, "hello")
	check(t, conn.Close())
	check(t, <-ended)
	want := []string{"received 'hello'", "sending data back to the client", "received ''", "no data from"}
	if diff := cmp.Diff(want, log.Messages()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestServeConnEchoesMuch(t *testing.T) {
	t.Parallel()
	conn, ended := servePair(t, t.Context(), zerolog.Nop())
	var want, got bytes.Buffer
	_, err := io.Copy(&want, random(3, 1<<20))
	check(t, err)
	check(t, quiet(0).Copy(t.Context(), conn, random(3, 1<<20), &got))
	check(t, <-ended)
	if !bytes.Equal(want.Bytes(), got.Bytes()) {
		t.Errorf("received %d of %d bytes, or other bytes", got.Len(), want.Len())
	}
}

func TestServeConnEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	conn, ended := servePair(t, ctx, zerolog.Nop())
	wantEcho(t, conn, "hello")
	reason := errors.New("enough")
	cancel(reason)
	if err := <-ended; !errors.Is(err, reason) {
		t.Errorf("error is %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is still open: %v", err)
	}
}

// ServeConn takes the sockets over, so it closes them.
func TestServeConnClosesSocketsOfOtherTypes(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(fds[1])) }()
	err = (config{Chunk: 16, Log: zerolog.Nop()}).ServeConn(t.Context(), fds[0])
	wantWords(t, err, "is not a stream socket")
	if !sock.HungUp(fds[1]) {
		t.Error("the other end is still connected")
	}
}

func TestServeConnRejectsOtherDescriptors(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	check(t, err)
	defer func() { check(t, errors.Join(r.Close(), w.Close())) }()
	err = (config{Chunk: 16, Log: zerolog.Nop()}).ServeConn(t.Context(), int(r.Fd()))
	wantWords(t, err, "is not a stream socket")
	if _, err := unix.FcntlInt(r.Fd(), unix.F_GETFD, 0); err != nil {
		t.Errorf("it has closed a descriptor that it did not take over: %v", err)
	}
}
