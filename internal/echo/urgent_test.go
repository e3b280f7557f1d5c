package echo_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// blocking returns the descriptor of a connection in blocking mode, with a
// timeout.
func blocking(t *testing.T, conn *sock.Conn) int {
	t.Helper()
	fd, err := conn.Detach()
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(fd)) })
	check(t, unix.SetNonblock(fd, false))
	late := unix.NsecToTimeval(patience.Nanoseconds())
	check(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late))
	return fd
}

// sendUrgent sends the parts of message between its bars, every second one
// with MSG_OOB, send(2), and returns all of them. The last byte of each such
// part is the urgent one.
func sendUrgent(t *testing.T, fd int, message string) (sent []byte) {
	t.Helper()
	for i, part := range strings.Split(message, "|") {
		if part != "" {
			check(t, unix.Sendto(fd, []byte(part), i%2*unix.MSG_OOB, nil))
			sent = append(sent, part...)
		}
	}
	return sent
}

// urgent are messages with urgent bytes in every place.
var urgent = []string{"|hello", "|h|ello", "he|l|lo", "hell|o", "|h||e||l||l||o|", "|o|", "a long message, which comes in|to |several| chunks", "|hello|hello|hello"}

func TestF41UrgentBytesComeBackInTheirPlace(t *testing.T) {
	t.Parallel()
	served := func(typ addr.Type, chunk int) *sock.Conn {
		socket := listen(t)
		if typ == addr.TCP {
			socket = listenTCP(t)
		}
		return dial(t, serveSocket(t, socket, config{Chunk: chunk}, zerolog.Disabled).Addr)
	}
	pair, _ := servePair(t, t.Context(), zerolog.Nop())
	count := 0
	for name, fd := range map[string]int{
		"stream":              blocking(t, served(addr.Stream, 16)),
		"stream, byte wise":   blocking(t, served(addr.Stream, 1)),
		"stream, large chunk": blocking(t, served(addr.Stream, 4096)),
		"tcp":                 blocking(t, served(addr.TCP, 16)),
		"pair":                blocking(t, pair),
	} {
		for range 20 {
			for _, message := range urgent {
				want := sendUrgent(t, fd, message)
				got := make([]byte, len(want))
				for n := 0; n < len(got); {
					m, err := unix.Read(fd, got[n:])
					if err == unix.EINTR { // whatever SA_RESTART says, as the socket has a timeout: signal(7)
						continue
					}
					if err != nil || m == 0 {
						t.Fatalf("%s: sent %q, and %q is back: %v", name, message, got[:n], err)
					}
					n += m
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("%s: sent %q, got back %q", name, message, got)
				}
				count++
			}
		}
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F41", Done: "messages with urgent bytes (`MSG_OOB`) at the start, inside, at the end and one after the other, over stream, tcp and a socketpair", Count: count,
		Outcome: "all bytes come back in order; the urgent ones are bytes like the others",
	})
}

// A server, too, may send urgent bytes.
func TestClientTakesUrgentBytesInTheirPlace(t *testing.T) {
	t.Parallel()
	for _, typ := range []addr.Type{addr.Stream, addr.TCP} {
		for _, message := range urgent {
			t.Run(string(typ)+" "+message, func(t *testing.T) {
				t.Parallel()
				socket := listen(t)
				if typ == addr.TCP {
					socket = listenTCP(t)
				}
				fd, err := unix.FcntlInt(uintptr(socket.FD()), unix.F_DUPFD_CLOEXEC, 0)
				check(t, err)
				f := os.NewFile(uintptr(fd), "")
				l, err := net.FileListener(f)
				check(t, errors.Join(err, f.Close()))
				defer func() { check(t, l.Close()) }()
				conn := dial(t, socket.Addr)
				served, err := l.Accept()
				check(t, err)
				raw, err := served.(syscall.Conn).SyscallConn()
				check(t, err)
				var want []byte
				check(t, raw.Control(func(fd uintptr) { want = sendUrgent(t, int(fd), message) }))
				check(t, served.Close())
				var got bytes.Buffer
				c := echo.Client{NoEcho: true, Log: zerolog.Nop()}
				check(t, c.Message(t.Context(), conn, nil, &got))
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("sent %q, received %q", want, &got)
				}
			})
		}
	}
}

// listenTCP listens on a port that the kernel chooses.
func listenTCP(t *testing.T) *addr.Socket {
	t.Helper()
	s, err := addr.Listen(sock.ListenConfig{}, addr.Addr{Type: addr.TCP, Path: "127.0.0.1:0"})
	check(t, err)
	s.Addr.Path = boundTo(t, s)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}
