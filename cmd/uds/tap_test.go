package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
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

func serving(t *testing.T, d string, args ...string) *testkit.Process {
	t.Helper()
	p := testkit.Start(t, d, append([]string{"server"}, args...)...)
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
	server := serving(t, d, "--listen", "s,seqpacket:q,datagram:d", "--max-per-user", "0")
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

// Our own server does not take a tap for a thief, whatever happens meanwhile.
func TestF66ServerThatIsTapped(t *testing.T) {
	t.Parallel()
	all := map[string]string{"s": "unix", "q": "unixpacket", "d": "unixgram"}
	listen := []string{"--listen", "s,seqpacket:q,datagram:d"}
	echoes := func(t *testing.T, d string) {
		t.Helper()
		for path, network := range all {
			check(t, asked(network, d+"/"+path, d+"/own"))
		}
	}
	const taken = "was taken or removed, as by a server that starts or ends"
	for name, try := range map[string]func(t *testing.T, d string, server *testkit.Process, taps []*testkit.Process){
		"it ends, and another starts at once": func(t *testing.T, d string, server *testkit.Process, taps []*testkit.Process) {
			server.Signal(t, syscall.SIGTERM)
			server.WantStatus(t, 0)
			next := serving(t, d, listen...)
			for _, tap := range taps {
				tap.WantStatus(t, 1)
				wantWords(t, tap.Err.String(), taken)
			}
			echoes(t, d)
			next.Stop(t)
		},
		"a second one starts": func(t *testing.T, d string, server *testkit.Process, taps []*testkit.Process) {
			status, _, stderr := testkit.Run(t, d, "", append([]string{"server"}, listen...)...)
			if status != 1 {
				t.Errorf("exit status %d: %s", status, stderr)
			}
			ended(t, taps)
			echoes(t, d)
			server.Stop(t)
		},
		"a successor takes over": func(t *testing.T, d string, server *testkit.Process, taps []*testkit.Process) {
			next := serving(t, d, append(listen, "--takeover")...)
			next.Err.Await(t, 3, "took over ")
			server.WantStatus(t, 0)
			echoes(t, d) // through the taps
			next.Err.Await(t, 3, "is tapped: ")
			ended(t, taps)
			echoes(t, d)
			next.Stop(t)
		},
		"the name is removed": func(t *testing.T, d string, server *testkit.Process, taps []*testkit.Process) {
			for path := range all {
				check(t, os.Remove(d+"/"+path))
			}
			for _, tap := range taps {
				tap.WantStatus(t, 1)
				wantWords(t, tap.Err.String(), taken)
			}
			server.Err.Await(t, 3, "was removed: listening again")
			echoes(t, d)
			server.Stop(t)
		},
		"tap and guard are killed": func(t *testing.T, d string, server *testkit.Process, taps []*testkit.Process) {
			for _, tap := range taps {
				tap.KillAll(t)
			}
			testkit.Await(t, func() (err error) { // within a second, when it looks at its files
				for path, network := range all {
					err = errors.Join(err, asked(network, d+"/"+path, d+"/own"))
				}
				return err
			})
			check(t, exec.Command(testkit.Program("uds"), "tap", "--undo", d+"/s").Run())
			check(t, exec.Command(testkit.Program("uds"), "tap", "--undo", d+"/q").Run())
			check(t, exec.Command(testkit.Program("uds"), "tap", "--undo", d+"/d").Run())
			server.Stop(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := dir(t)
			server := serving(t, d, append(listen, "--takeover")...)
			var taps []*testkit.Process
			for path := range all {
				taps = append(taps, tapping(t, d, path))
			}
			server.Err.Await(t, 3, "is tapped: ")
			echoes(t, d)
			try(t, d, server, taps)
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F66", Count: 15, Done: "our server is tapped, over each type: it ends, and another starts at once; a second one starts; a successor takes over; the name is removed; tap and guard are killed",
		Outcome: "each time the server did what it does without a tap, clients were served, and nothing was left",
	})
}

func ended(t *testing.T, taps []*testkit.Process) {
	t.Helper()
	for _, tap := range taps {
		tap.Signal(t, syscall.SIGTERM)
		tap.WantStatus(t, 0)
	}
}
