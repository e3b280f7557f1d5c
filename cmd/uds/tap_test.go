package main_test

import (
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
)

// tapping starts a tap and waits until it passes clients on.
func tapping(t *testing.T, d string, args ...string) *testkit.Process {
	t.Helper()
	p := testkit.Start(t, d, append([]string{"uds", "tap", "--log-format", "plain"}, args...)...)
	if !p.Err.Reaches(1, "waiting for a ", p.Ended) {
		t.Fatal(p.Err.String())
	}
	return p
}

func serving(t *testing.T, d string, as uint32, args ...string) *testkit.Process {
	t.Helper()
	p := testkit.Prepare(t, d, append([]string{"server"}, args...)...)
	if as != 0 {
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as, Gid: as}}
	}
	p.Start(t)
	if !p.Err.Reaches(1, "waiting for a ", p.Ended) {
		t.Fatal(p.Err.String())
	}
	return p
}

// asked asks an echo server once, over a new socket. A datagram client does not
// connect, as with sendto(2): then it would stay with the tap.
func asked(network, path, own string) error {
	var conn *net.UnixConn
	var err error
	if to := (&net.UnixAddr{Name: path, Net: network}); network != "unixgram" {
		conn, err = net.DialUnix(network, nil, to)
	} else if conn, err = net.ListenUnixgram(network, &net.UnixAddr{Name: own, Net: network}); err == nil {
		defer func() { _ = os.Remove(own) }()
		_, err = conn.WriteToUnix([]byte(message), to)
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if network == "unixgram" {
		return back(conn)
	}
	return echoed(conn)
}

const message = "a message"

func echoed(conn *net.UnixConn) error {
	if _, err := conn.Write([]byte(message)); err != nil {
		return err
	}
	return back(conn)
}

func back(conn *net.UnixConn) error {
	err := conn.SetReadDeadline(time.Now().Add(testkit.Patience))
	got := make([]byte, len(message))
	for n := 0; n < len(got) && err == nil; {
		var more int
		more, err = conn.Read(got[n:])
		n += more
	}
	if err == nil && string(got) != message {
		err = fmt.Errorf("%q came back", got)
	}
	return err
}

func TestF64TapsUnderLoad(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serving(t, d, 0, "--listen", "s,seqpacket:q,datagram:d", "--max-per-user", "0")
	kinds := map[string]string{"s": "unix", "q": "unixpacket", "d": "unixgram"}
	var clients sync.WaitGroup
	var done atomic.Int64
	over := make(chan struct{})
	for path, network := range kinds {
		for i := range 2 {
			clients.Go(func() {
				// Each has a new name: this process starts others, which have its
				// closed sockets for a moment, and a server knows a name for a second.
				for n := 0; ; n++ {
					select {
					case <-over:
						return
					default:
					}
					if err := asked(network, d+"/"+path, fmt.Sprint(d, "/own", i, ".", n)); err != nil {
						t.Errorf("%s: %v", path, err)
						return
					}
					done.Add(1)
				}
			})
		}
	}
	rounds := testkit.Count(3, 34)
	for range rounds {
		for path, network := range kinds {
			p := tapping(t, d, path)
			p.Out.Await(t, 4, "conn ") // it passes something
			if network == "unixgram" {
				p.Signal(t, syscall.SIGTERM)
				p.WantStatus(t, 0)
				continue
			}
			conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: d + "/" + path, Net: network})
			check(t, err)
			check(t, echoed(conn))
			p.Signal(t, syscall.SIGTERM)
			p.Err.Await(t, 1, "draining for up to")
			check(t, echoed(conn)) // served to its end
			check(t, conn.Close())
			p.WantStatus(t, 0)
		}
		if t.Failed() {
			break
		}
	}
	close(over)
	clients.Wait()
	server.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F64", Count: 3 * rounds, Done: "a running server is tapped again and again, over each type, while 6 clients ask it without a pause; a connection through each tap of streams and seqpacket is open at its end",
		Outcome: fmt.Sprintf("%d clients, none failed; the open connections were served to their end", done.Load()),
	})
}
