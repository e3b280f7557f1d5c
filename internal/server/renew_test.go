package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// renewing is a server in a directory in which the test may do anything. Its
// name contains characters that must not get into the log.
type renewing struct {
	*running
	dir string
}

func serveIn(t *testing.T, typ addr.Type, listen sock.ListenConfig, takeover bool) *renewing {
	t.Helper()
	d, err := os.MkdirTemp("", "uds\x1b*")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
	r := &renewing{dir: d}
	r.running = &running{Log: newJournal(), Done: make(chan error, 1)}
	r.Addr = addr.Addr{Type: typ, Path: d + "/s"}
	s := config{Log: r.Log.Logger(zerolog.WarnLevel), Chunk: 100, DrainTimeout: patience}
	var sockets []*addr.Socket
	if takeover {
		var err error
		sockets, s.Handover, err = addr.Handover(listen, r.Addr)
		check(t, err)
	} else {
		socket, err := addr.Listen(listen, r.Addr)
		check(t, err)
		sockets = append(sockets, socket)
	}
	ctx, stop := context.WithCancel(t.Context())
	r.Stop = stop
	go func() { r.Done <- s.Serve(ctx, sockets...) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-r.Done: // the test has checked the error, if it matters
			r.Done <- err
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	})
	return r
}

// ends waits for the server and returns its error.
func (r *renewing) ends(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.Done:
		r.Done <- err
		return err
	case <-time.After(patience):
		t.Fatal("the server does not end")
		return nil
	}
}

func (r *renewing) wantFiles(t *testing.T, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(r.dir)
	check(t, err)
	same := len(entries) == len(want)
	for i, e := range entries {
		same = same && i < len(want) && e.Name() == want[i]
	}
	if !same {
		t.Errorf("the directory holds %v, not %q", entries, want)
	}
}

func TestRemovedSocketFileIsRecreated(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		for name, remove := range map[string]func(t *testing.T, d string){
			"the file":       func(t *testing.T, d string) { check(t, os.Remove(d+"/s")) },
			"the lock too":   func(t *testing.T, d string) { check(t, errors.Join(os.Remove(d+"/s"), os.Remove(d+"/.s.lock"))) },
			"it is moved":    func(t *testing.T, d string) { check(t, os.Rename(d+"/s", d+"/moved")) },
			"the whole of d": func(t *testing.T, d string) { check(t, errors.Join(os.RemoveAll(d), os.Mkdir(d, 0o755))) },
		} {
			for _, takeover := range []bool{false, true} {
				if takeover && name != "the lock too" {
					continue // it takes a second each
				}
				t.Run(string(typ)+", "+name, func(t *testing.T) {
					t.Parallel()
					srv := serveIn(t, typ, sock.ListenConfig{Mode: 0o640}, takeover)
					r := sock.NewReceiver(100)
					before := dialBound(t, srv.Addr)
					wantBack(t, before, r, "before")
					rounds := 1
					if name == "the file" {
						rounds = 2
					}
					for round := range rounds {
						remove(t, srv.dir)
						srv.Log.Await(t, round+1, logtext.Escape(srv.Addr.Path)+" was removed: listening again")
						wantServed(t, srv.Addr, "after")
						wantBack(t, before, r, "continues")
						info, err := os.Lstat(srv.Addr.Path)
						check(t, err)
						if info.Mode().Perm() != 0o640 {
							t.Errorf("mode is %v", info.Mode())
						}
						_ = os.Remove(srv.dir + "/moved")
					}
					files := []string{".s.lock", "s"}
					if takeover {
						files = []string{".s.lock", ".s.takeover", "s"}
					}
					srv.wantFiles(t, files...)
					// No other server gets in between.
					if _, err := addr.Listen(sock.ListenConfig{}, srv.Addr); !errors.Is(err, sock.ErrInUse) {
						t.Errorf("another server gets %v", err)
					}
					check(t, before.Close())
					srv.Stop()
					check(t, srv.ends(t))
					srv.wantFiles(t)
				})
			}
		}
	}
}

// dialBound is dial with an abstract name of its own, because the directory is
// removed.
func dialBound(t *testing.T, a addr.Addr) *sock.Conn {
	t.Helper()
	conn, err := addr.Dial(t.Context(), a, sock.DialConfig{Bind: sock.AutoName("@")})
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// wantServed is a client that connects, gets an echo and ends.
func wantServed(t *testing.T, a addr.Addr, message string) {
	t.Helper()
	conn := dialBound(t, a)
	wantBack(t, conn, sock.NewReceiver(100), message)
	check(t, conn.Close())
}

// A client that connects to the moved socket while it is renewed is not lost.
func TestClientOfAMovedSocketIsServed(t *testing.T) {
	t.Parallel()
	srv := serveIn(t, addr.Stream, sock.ListenConfig{}, false)
	moved := addr.Addr{Type: addr.Stream, Path: srv.dir + "/moved"}
	check(t, os.Rename(srv.Addr.Path, moved.Path))
	r := sock.NewReceiver(100)
	for served := 0; ; served++ {
		conn, err := addr.Dial(t.Context(), moved, sock.DialConfig{})
		if errors.Is(err, unix.ECONNREFUSED) && served > 0 {
			break
		}
		check(t, err)
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		wantBack(t, conn, r, message)
		check(t, conn.Close())
	}
	srv.Log.Await(t, 1, logtext.Escape(srv.Addr.Path)+" was removed: listening again")
	wantServed(t, srv.Addr, message)
}

func TestSocketWhosePathIsTakenEndsOnceItsClientsAreServed(t *testing.T) {
	t.Parallel()
	for _, typ := range []addr.Type{addr.Stream, addr.Datagram} {
		for name, tt := range map[string]struct {
			take func(t *testing.T, a addr.Addr)
			want error
		}{
			"regular file": {func(t *testing.T, a addr.Addr) {
				check(t, os.WriteFile(a.Path+"~", []byte("precious"), 0o600))
				check(t, os.Rename(a.Path+"~", a.Path))
			}, sock.ErrNotSocket},
			"symbolic link": {func(t *testing.T, a addr.Addr) {
				check(t, os.Symlink("elsewhere", a.Path+"~"))
				check(t, os.Rename(a.Path+"~", a.Path))
			}, sock.ErrNotSocket},
			"another server with its lock": {func(t *testing.T, a addr.Addr) {
				check(t, errors.Join(os.Remove(beside(a.Path, ".lock")), os.Remove(a.Path)))
				other, err := addr.Listen(sock.ListenConfig{}, a)
				check(t, err)
				t.Cleanup(func() { check(t, other.Close()) })
			}, sock.ErrInUse},
			"another server without": {func(t *testing.T, a addr.Addr) {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				check(t, err)
				t.Cleanup(func() { check(t, unix.Close(fd)) })
				check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path + "~"}))
				check(t, unix.Listen(fd, 1))
				check(t, os.Rename(a.Path+"~", a.Path))
			}, sock.ErrInUse},
		} {
			t.Run(string(typ)+", "+name, func(t *testing.T) {
				t.Parallel()
				srv := serveIn(t, typ, sock.ListenConfig{}, false)
				r := sock.NewReceiver(100)
				before := dialBound(t, srv.Addr)
				wantBack(t, before, r, "before")
				tt.take(t, srv.Addr)
				info, err := os.Lstat(srv.Addr.Path)
				check(t, err)
				if typ.Connects() {
					// The old server drains: it releases the lock after it has
					// given up the path.
					for late := time.Now().Add(patience); name != "another server with its lock"; time.Sleep(time.Millisecond) {
						if _, err := os.Lstat(beside(srv.Addr.Path, ".lock")); errors.Is(err, os.ErrNotExist) {
							break
						}
						if time.Now().After(late) {
							t.Fatal("the lock stays")
						}
					}
					wantBack(t, before, r, "continues")
					check(t, before.Close())
				}
				if err := srv.ends(t); !errors.Is(err, tt.want) {
					t.Errorf("the server ends with %v", err)
				}
				if now, err := os.Lstat(srv.Addr.Path); err != nil || !os.SameFile(now, info) {
					t.Errorf("%s is another file now (%v)", srv.Addr.Path, err)
				}
				if name == "another server with its lock" {
					srv.wantFiles(t, ".s.lock", "s")
				} else {
					srv.wantFiles(t, "s")
				}
			})
		}
	}
}

func TestServerWhoseDirectoryIsGoneContinuesAndComesBack(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			srv := serveIn(t, typ, sock.ListenConfig{}, false)
			r := sock.NewReceiver(100)
			before := dialBound(t, srv.Addr)
			check(t, os.RemoveAll(srv.dir))
			srv.Log.Await(t, 2, logtext.Escape(srv.Addr.Path+" was removed, and cannot be recreated now: listen again on "+
				srv.Addr.String()+": lock "+beside(srv.Addr.Path, ".lock")+": no such file or directory (ENOENT): directory "+srv.dir+" does not exist"))
			wantBack(t, before, r, "continues")
			check(t, os.Mkdir(srv.dir, 0o755))
			srv.Log.Await(t, 1, logtext.Escape(srv.Addr.Path)+" was removed: listening again")
			wantServed(t, srv.Addr, "back")
			wantBack(t, before, r, "continues")
		})
	}
}

func TestRenewedSocketIsHandedOver(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			srv := serveIn(t, typ, sock.ListenConfig{}, true)
			check(t, os.Remove(srv.Addr.Path))
			srv.Log.Await(t, 1, logtext.Escape(srv.Addr.Path)+" was removed: listening again")

			generate(t, config{}, srv.Addr).Log.Await(t, 1, "took over ")
			check(t, srv.ends(t))
			wantEchoOf(t, srv.Addr)
		})
	}
}

// Of the sockets that were replaced, the one that was silent for longest is
// closed, so that they do not become more and more.
func TestF59ReplacedDatagramSocketsAreClosed(t *testing.T) {
	t.Parallel()
	srv := serveIn(t, addr.Datagram, sock.ListenConfig{}, false)
	r := sock.NewReceiver(100)
	clients := []*sock.Conn{dialBound(t, srv.Addr)}
	for round := range 5 {
		wantBack(t, clients[0], r, "continues")
		wantBack(t, clients[round], r, "before")
		check(t, os.Remove(srv.Addr.Path))
		srv.Log.Await(t, round+1, logtext.Escape(srv.Addr.Path)+" was removed: listening again")
		clients = append(clients, dialBound(t, srv.Addr))
	}
	testkit.Await(t, func() error {
		if err := clients[1].Send([]byte("gone")); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("a message to the socket that was silent for longest gives %w", err)
		}
		return nil
	})
	for i, c := range clients {
		if i != 1 {
			wantBack(t, c, r, "continues")
		}
	}
}

// A server has asked for a socket, and not claimed it yet. It asked for one
// that clients no longer find.
func TestSocketThatIsRenewedWhileItIsOffered(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			srv := serveIn(t, typ, sock.ListenConfig{}, true)
			_, offered := ask(t, srv.Addr)
			check(t, os.Remove(srv.Addr.Path))
			srv.Log.Await(t, 1, logtext.Escape(srv.Addr.Path)+" was removed: listening again")
			offered.Claim()
			if _, err := offered.Step(); !errors.Is(err, sock.ErrInUse) {
				t.Errorf("it can still be claimed: %v", err)
			}
			offered.Close()
			wantServed(t, srv.Addr, message)
			srv.Stop()
			check(t, srv.ends(t))
			srv.wantFiles(t)
		})
	}
}

func TestRemovedControlSocketIsRecreated(t *testing.T) {
	t.Parallel()
	srv := serveIn(t, addr.Stream, sock.ListenConfig{}, true)
	check(t, os.Remove(beside(srv.Addr.Path, ".takeover")))
	for late := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // no event reports it
		if conn, err := net.Dial("unixpacket", beside(srv.Addr.Path, ".takeover")); err == nil {
			check(t, conn.Close())
			break
		}
		if time.Now().After(late) {
			t.Fatal("it is not recreated")
		}
	}
	generate(t, config{}, srv.Addr).Log.Await(t, 1, "took over ")
	check(t, srv.ends(t))
	wantEchoOf(t, srv.Addr)
}
