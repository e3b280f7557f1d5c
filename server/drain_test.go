package main_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
	"golang.org/x/sys/unix"
)

func TestF23SIGTERMWithDataInFlight(t *testing.T) {
	t.Parallel()
	sent := make([]byte, 16<<20)
	_, err := rand.Read(sent)
	check(t, err)
	n := testkit.Count(20, 100)
	longest := time.Duration(0)
	for i := range n {
		server := serve(t, dir(t), "--chunk", "65536", "--drain-timeout", patience.String())
		conn := connect(t, "unix", server.Cmd.Dir+"/uds_socket")
		written := make(chan error, 1)
		go func() {
			_, err := conn.Write(sent)
			written <- errors.Join(err, conn.CloseWrite())
		}()
		got := make([]byte, len(sent))
		after := i * len(sent) / n
		_, err := io.ReadFull(conn, got[:after])
		check(t, err)
		signalled := time.Now()
		server.Signal(t, syscall.SIGTERM)
		_, err = io.ReadFull(conn, got[after:])
		check(t, errors.Join(err, <-written))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) || !bytes.Equal(got, sent) {
			t.Errorf("SIGTERM after %d bytes: received other bytes, and at the end %v", after, err)
		}
		server.WantStatus(t, 0)
		longest = max(longest, time.Since(signalled))
		wantFiles(t, server.Cmd.Dir)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F23", Done: "SIGTERM at another hundredth of 16 MiB in flight; with `docker stop`: `TestStopByTheEngineDrains`", Count: n,
		Outcome: fmt.Sprintf("0 bytes lost, exit 0, at most %.2f s later", longest.Seconds()),
	})
}

// A shortage is a server that can open no further file, and clients that have
// connected anyway: some before and some after. All have sent something.
type shortage struct {
	server       *process
	held, behind []*net.UnixConn
}

// waiting is the message that they have sent.
const waiting = "waiting"

func runShort(t *testing.T, files uint64, n int, args ...string) (s shortage) {
	t.Helper()
	d := dir(t)
	s.server = serve(t, d, append([]string{"--listen", "s,seqpacket:q"}, args...)...)
	for i := range n / 2 {
		s.held = append(s.held, connectEither(t, d, i))
		check(t, echoed(s.held[i], message))
	}
	if files == 0 {
		files = uint64(countOpen(t, s.server, func(string) bool { return true }))
	}
	limitFiles(t, s.server, files)
	for i := range n {
		conn := connectEither(t, d, i)
		_, err := io.WriteString(conn, waiting)
		check(t, err)
		s.behind = append(s.behind, conn)
	}
	s.server.Err.Await(t, 1, "cannot accept: too many open files")
	return s
}

func TestF47ClientsThatWaitForADescriptorAtSIGTERMAreServedOrCounted(t *testing.T) {
	t.Parallel()
	const n = 20
	t.Run("a server", func(t *testing.T) {
		// The descriptors of clients that leave become free.
		t.Run("whose clients leave", func(t *testing.T) {
			t.Parallel()
			s := runShort(t, 0, n, "--drain-timeout", patience.String())
			s.server.Signal(t, syscall.SIGTERM)
			awaitEmpty(t, s.server.Cmd.Dir)
			for _, conn := range s.held {
				check(t, conn.Close())
			}
			// Each client needs the same free descriptor, so each leaves when
			// it is served.
			for i, conn := range s.behind {
				got := make([]byte, len(waiting))
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != waiting {
					t.Errorf("client %d of %d got %q, %v", i, n, got, err)
				}
				check(t, conn.Close())
			}
			s.server.WantStatus(t, 0)
			if strings.Contains(s.server.Err.String(), "rejected") {
				t.Errorf("it rejected clients:\n%s", &s.server.Err)
			}
		})
		for name, files := range map[string]uint64{"whose clients stay": 0, "that may open nothing": 3} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := runShort(t, files, n, "--drain-timeout", "1s", "--log-format", "json")
				s.server.Signal(t, syscall.SIGTERM)
				told := 0
				for i, conn := range s.behind {
					got, err := io.ReadAll(conn)
					if len(got) == 0 {
						told++
					} else if string(got) != waiting { // the server's locks and other files are closed first
						t.Errorf("client %d of %d got %q", i, n, got)
					}
					if err != nil && !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("client %d of %d: %v", i, n, err)
					}
				}
				if told < n/2 {
					t.Errorf("only %d of %d are rejected", told, n)
				}
				s.server.WantStatus(t, 0)
				wantWords(t, s.server.Err.String(), fmt.Sprintf("rejected %d waiting clients: no descriptor became free for them", told), `"cause":"system"`,
					fmt.Sprintf(`"refused":%d`, told))
			})
		}
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F47", Done: "clients that have connected to a server that may open no further file, at SIGTERM: its other clients leave; stay; or nothing comes free at all", Count: 3 * n,
		Outcome: "all served once descriptors came free; where none did by the drain timeout, their connections closed, their number counted and in the log",
	})
}
