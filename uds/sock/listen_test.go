//go:build linux

package sock_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// wantRefused listens at a path, which must fail and change nothing there.
func wantRefused(t *testing.T, a sock.Addr, target error, words ...string) {
	t.Helper()
	same := func() {}
	if !a.Abstract() {
		same = keeps(t, filepath.Dir(a.Path))
	}
	s, err := sock.ListenConfig{Mode: 0o666}.Listen(a)
	if err == nil {
		check(t, s.Close())
	}
	wantError(t, err, target, append(words, "listen "+a.String()+": ")...)
	same()
}

// Not parallel: a child that is being started would hold a socket open for a
// moment.
func TestListenRefusesLiveSocket(t *testing.T) {
	for typ := range types {
		// A plain listener without our lock: the socket itself must show that it is
		// served.
		a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
		bound(t, a)
		wantRefused(t, stream(a.Path), sock.ErrInUse, "a server answers on "+a.Path, string(typ))
		dial(t, a)
	}
	a := stream(dir(t) + "/s")
	check(t, unix.Listen(bound(t, a), 1))
	fill(t, a)
	wantRefused(t, a, sock.ErrInUse, "a server answers on "+a.Path)

	for _, a := range []sock.Addr{stream(dir(t) + "/s"), stream(sock.AutoName("@"))} {
		words := "abstract name " + a.Path
		if !a.Abstract() {
			words = beside(a.Path, ".lock")
		}
		s := listen(t, sock.ListenConfig{}, a)
		wantRefused(t, a, sock.ErrInUse, words)
		dial(t, a)
		check(t, s.Close())
		listen(t, sock.ListenConfig{}, a)
	}
}

// Not parallel: a child that is being started would hold a socket open for a
// moment.
func TestBoundSocketThatDoesNotListenYetIsLeftAlone(t *testing.T) {
	for _, typ := range []sock.Type{sock.Stream, sock.Seqpacket} {
		path := dir(t) + "/s"
		fd, err := unix.Socket(unix.AF_UNIX, types[typ]|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		wantRefused(t, stream(path), sock.ErrInUse, "a process has bound it, and does not listen: a server that is about to start, or a client's own name")
		check(t, unix.Close(fd))
		listen(t, sock.ListenConfig{}, stream(path))
	}
}

func TestListenReplacesStaleSocket(t *testing.T) {
	t.Parallel()
	for typ := range types {
		a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
		stale(t, a.Path)
		listen(t, sock.ListenConfig{}, a)
		dial(t, a)
	}
}

func TestListenErrorsCarryErrnoAndCure(t *testing.T) {
	t.Parallel()
	d := dir(t)
	precious(t, d+"/file")
	// A user with write permission on the directory could make us create, or lock,
	// a file elsewhere.
	check(t, os.Symlink(d+"/elsewhere", d+"/.s.lock"))
	wantRefused(t, stream(d+"/s"), unix.ELOOP, d+"/.s.lock")

	same := keeps(t, d)
	_, err := sock.ListenConfig{}.Listen(stream(d + "/none/s"))
	wantError(t, err, unix.ENOENT, "ENOENT", "directory "+d+"/none does not exist", "create it")
	_, err = sock.ListenConfig{}.Listen(stream(d + "/file/s"))
	wantError(t, err, unix.ENOTDIR, d+"/file is not a directory")
	same()
}

func TestListenWithoutPermission(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o555))
	defer func() { check(t, os.Chmod(d, 0o755)) }()
	owner := "of user " + strconv.Itoa(os.Geteuid())
	asStranger(func() {
		wantRefused(t, stream(d+"/s"), unix.EACCES, "EACCES", d+" denies this process permission to write to it: its mode is 0555, ", owner, "this process is")
	})
	// It may write, and not probe the socket.
	d = dir(t)
	check(t, os.Chmod(d, 0o777))
	bound(t, stream(d+"/s"))
	check(t, os.Chmod(d+"/s", testkit.ClosedMode()))
	asStranger(func() {
		wantRefused(t, stream(d+"/s"), unix.EACCES, "left alone", fmt.Sprintf("mode is %04o", testkit.ClosedMode()))
	})
}

// Not parallel: it counts the descriptors of the process.
func TestRefusedListenLeaksNoDescriptor(t *testing.T) {
	d := dir(t)
	listen(t, sock.ListenConfig{}, stream(d+"/live"))
	precious(t, d+"/file")
	for range 2 {
		same := keepsDescriptors(t)
		for _, path := range []string{d + "/live", d + "/file", d + "/none/s"} {
			wantError(t, testkit.Err(sock.ListenConfig{}.Listen(stream(path))), nil)
		}
		same()
	}
}

func precious(t *testing.T, path string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte("precious"), 0o640))
}

// leavesAlone listens with each type on an obstacle, and returns how many types
// it tried.
func leavesAlone(t *testing.T, kind string, put func(path string)) (n int) {
	t.Helper()
	for typ := range types {
		n++
		path := dir(t) + "/s"
		put(path)
		wantRefused(t, sock.Addr{Type: typ, Path: path}, sock.ErrNotSocket, path+" is a "+kind, "left alone", "choose another path")
	}
	return n
}

func TestF4OtherFileAtThePathIsLeftAlone(t *testing.T) {
	t.Parallel()
	n := leavesAlone(t, "regular file", func(path string) { precious(t, path) })
	n += leavesAlone(t, "regular file", func(path string) { check(t, os.WriteFile(path, nil, 0o600)) })
	n += leavesAlone(t, "directory", func(path string) { check(t, os.Mkdir(path, 0o750)) })
	n += leavesAlone(t, "named pipe", func(path string) { check(t, unix.Mkfifo(path, 0o640)) })
	testkit.ReportFault(t, "F4", n,
		"servers of each type started on a regular file, an empty one, a directory, a named pipe",
		"all refused; inode, mode, time and content unchanged")
}

func TestF5SymbolicLinkAtThePathIsRefused(t *testing.T) {
	t.Parallel()
	n := 0
	for _, put := range []func(target string){
		func(target string) { bound(t, stream(target)) },
		func(target string) { stale(t, target) },
		func(target string) { precious(t, target) },
		func(string) {}, // a dangling link
	} {
		n += leavesAlone(t, "symbolic link", func(path string) {
			put(path + "target")
			check(t, os.Symlink(path+"target", path))
		})
	}

	// Another process with write permission on the directory puts a link to a file
	// in place of the socket: chmod(2) would follow it.
	d := dir(t)
	path, target, swaps := d+"/s", dir(t), 0
	precious(t, target+"/file")
	same := keeps(t, target)
	_, results := pester(t, asSelf, func() error {
		if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSocket == 0 {
			return nil
		}
		if os.Symlink(target+"/file", d+"/link") == nil && os.Rename(d+"/link", path) == nil {
			swaps++
		}
		_ = os.Remove(path)
		return nil
	})
	const starts = 1000
	for range starts {
		// 0777 has bits that the umask removes; they may have to be set again.
		if s, err := (sock.ListenConfig{Mode: 0o777}).Listen(stream(path)); err == nil {
			check(t, s.Close())
		}
	}
	results()
	if swaps == 0 {
		t.Error("no socket was swapped")
	}
	same()
	testkit.ReportFault(t, "F5", n+starts,
		"servers of each type started on links to a live and a stale socket, to a file, to nothing; "+
			"and while another process swaps the new socket for a link to a file",
		fmt.Sprintf("the links refused, those of %d swaps not followed; mode, time and content of the files they lead to unchanged", swaps))
}

func TestF29LongestPathWorksAndOneByteMoreIsAnErrorWithTheNumber(t *testing.T) {
	t.Parallel()
	d := dir(t)
	longer := func(start string, n int) string { return start + strings.Repeat("s", n-len(start)) }
	count := 0
	for typ := range types {
		for _, start := range []string{d + "/", "@" + filepath.Base(d)} {
			count++
			s := listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: longer(start, 107)})
			conn := dial(t, s.Addr())
			if got := conn.RemoteAddr().String(); got != s.Addr().Path {
				t.Errorf("connected to %q, not %q", got, s.Addr().Path)
			}
			check(t, conn.Close())
			check(t, s.Close())

			a := sock.Addr{Type: typ, Path: longer(start, 108)}
			_, parse := sock.ParseAddr(a.String())
			_, listen := sock.ListenConfig{}.Listen(a)
			for _, err := range []error{
				parse, listen, dialError(a, sock.DialConfig{}), dialError(sock.Addr{Type: typ, Path: d + "/s"}, sock.DialConfig{Bind: a.Path}),
			} {
				count++
				wantError(t, err, sock.ErrAddress, "path is 108 bytes", "holds 107", "shorter")
			}
		}
	}
	wantFiles(t, d)
	testkit.ReportFault(t, "F29", count,
		"paths and abstract names of 107 and of 108 bytes, of each type, parsed, listened on, dialled, and as a client's own name",
		"107 bytes: listens and is reached under the whole name; 108: an error that names both numbers, and nothing made")
}

func TestModeIsExactUnderAnyUmask(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ typ, umask, mode, want string }{
		{"stream", "000", "600", "600"},
		{"stream", "077", "600", "600"},
		{"stream", "000", "666", "666"},
		{"stream", "077", "666", "666"},
		{"stream", "022", "660", "660"},
		{"stream", "777", "777", "777"},
		{"datagram", "000", "600", "600"},
		{"datagram", "077", "666", "666"},
		{"seqpacket", "077", "660", "660"},
		// The umask alone decides, because no mode was requested.
		{"stream", "000", "0", "777"},
		{"stream", "022", "0", "755"},
		{"stream", "077", "0", "700"},
	} {
		t.Run(tt.typ+" "+tt.mode+" under "+tt.umask, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			c := start(t, 0, "listen", tt.typ+":"+d+"/s", tt.mode, tt.umask)
			c.Do(t)
			info, err := os.Lstat(d + "/s")
			check(t, err)
			if info.Mode() != octal(tt.want)|fs.ModeSocket {
				t.Errorf("mode is %v, not %s", info.Mode(), tt.want)
			}
			c.End(t)
			wantFiles(t, d)
		})
	}
}

// Between bind(2) and chmod(2) the file has the mode that bind gave it; under
// umask 0 every user could connect.
func TestF6SocketIsAtNoMomentMoreOpenThanAsked(t *testing.T) {
	t.Parallel()
	attempts := 0
	for typ := range types {
		t.Run(string(typ), func(t *testing.T) {
			a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
			until, results := pester(t, asStranger, func() error {
				fd, err := unix.Socket(unix.AF_UNIX, types[typ]|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer func() { _ = unix.Close(fd) }()
				if typ == sock.Datagram {
					return unix.Sendto(fd, []byte("knock"), 0, &unix.SockaddrUnix{Name: a.Path})
				}
				return unix.Connect(fd, &unix.SockaddrUnix{Name: a.Path})
			})
			server := start(t, 0, "listen", a.String(), strconv.FormatUint(uint64(testkit.ClosedMode()), 8), "0")
			for range 100 {
				server.Do(t)
				server.Do(t)
			}
			server.Do(t) // the last one stays until the stranger has tried to connect to it
			until(unix.EACCES)
			for err, n := range results() {
				if attempts += n; err != unix.EACCES && err != unix.ENOENT {
					t.Errorf("the stranger got past the mode %d times: %v", n, err)
				}
			}
			server.End(t)
		})
	}
	testkit.ReportFault(t, "F6", 300,
		"a stranger dials without a pause, for each type, while a server starts 100 times under umask 0 with a mode that keeps it out",
		fmt.Sprintf("%d attempts, none got past the mode", attempts))
}

func TestF30EmptyPathAndNULAreRefusedAndAbstractNamesHaveAFormOfTheirOwn(t *testing.T) {
	t.Parallel()
	d := dir(t)
	count := 0
	for typ := range types {
		s := listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: d + "/s"})
		for path, words := range map[string]string{
			"":                  "path is empty",
			"@":                 "path is empty",
			"\x00":              "NUL byte",
			"\x00abstract":      "NUL byte",
			"@a\x00b":           "NUL byte",
			d + "/s\x00":        "NUL byte",
			d + "/s\x00.hidden": "NUL byte",
		} {
			a := sock.Addr{Type: typ, Path: path}
			_, parse := sock.ParseAddr(a.String())
			_, listen := sock.ListenConfig{}.Listen(a)
			errs := []error{parse, listen, dialError(a, sock.DialConfig{})}
			if path != "" { // an empty path means no name
				errs = append(errs, dialError(s.Addr(), sock.DialConfig{Bind: path}))
			}
			for _, err := range errs {
				count++
				wantError(t, err, sock.ErrAddress, words)
			}
		}
		check(t, s.Close())

		// @NAME is not a file, but a file may have such a name.
		abstract, file := sock.Addr{Type: typ, Path: sock.AutoName("@")}, sock.Addr{Type: typ, Path: d + "/@x"}
		if !abstract.Abstract() || file.Abstract() {
			t.Errorf("%s is abstract: %t, %s: %t", abstract, abstract.Abstract(), file, file.Abstract())
		}
		s = listen(t, sock.ListenConfig{}, abstract)
		wantFiles(t, d)
		check(t, s.Close())
		s = listen(t, sock.ListenConfig{}, file)
		wantFiles(t, d, ".@x.lock", "@x")
		wantError(t, dialError(sock.Addr{Type: typ, Path: "@x"}, sock.DialConfig{}), unix.ECONNREFUSED, "no server has the name @x")
		check(t, s.Close())
		count += 3
	}
	wantFiles(t, d)
	testkit.ReportFault(t, "F30", count,
		"paths that are empty, `@` or hold a NUL byte, of each type, parsed, listened on, dialled, and as a client's own name; `@NAME` beside a file of such a name",
		"empty and NUL refused before any system call; `@NAME` alone is abstract, `DIR/@x` is a file")
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	for typ := range types {
		d := dir(t)
		s := listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: d + "/s"}) // its cleanup closes it again
		wantFiles(t, d, ".s.lock", "s")
		check(t, s.Close())
		wantFiles(t, d)
	}
}

// The files were removed by hand, and another server has the path now.
func TestCloseLeavesSuccessorsFiles(t *testing.T) {
	t.Parallel()
	for typ := range types {
		d := dir(t)
		a := sock.Addr{Type: typ, Path: d + "/s"}
		s := listen(t, sock.ListenConfig{}, a)
		check(t, os.Remove(a.Path))
		check(t, os.Remove(beside(a.Path, ".lock")))
		listen(t, sock.ListenConfig{}, a)
		same := keeps(t, d)
		check(t, s.Close())
		same()
		wantRefused(t, a, sock.ErrInUse, beside(a.Path, ".lock"))
		dial(t, a)
	}
	// It may be one without our lock.
	d := dir(t)
	s := listen(t, sock.ListenConfig{}, stream(d+"/s"))
	check(t, os.Remove(d+"/s"))
	bound(t, stream(d+"/s"))
	check(t, s.Close())
	wantFiles(t, d, "s")
	dial(t, stream(d+"/s"))
}

func TestKilledHolderLeavesStaleSocketThatIsReplaced(t *testing.T) {
	t.Parallel()
	d := dir(t)
	c := start(t, 0, "listen", "stream:"+d+"/s", "600", "022")
	c.Do(t)
	c.Kill(t)
	wantFiles(t, d, ".s.lock", "s")
	listen(t, sock.ListenConfig{}, stream(d+"/s"))
	dial(t, stream(d+"/s"))
}

func TestRefuseStillAcceptsEarlierConnections(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	s := listen(t, sock.ListenConfig{}, a)
	check(t, dial(t, a).Send([]byte("early")))
	check(t, s.Refuse())
	wantError(t, dialError(a, sock.DialConfig{}), unix.ECONNREFUSED)

	buf := make([]byte, 16)
	n, err := unix.Read(accept(t, a, s.FD()), buf)
	wantMessage(t, "early", buf[:max(n, 0)], err)
	if _, _, err := unix.Accept(s.FD()); err != unix.EAGAIN && err != unix.EINVAL {
		t.Errorf("another accept gives %v", err)
	}
}

func TestUnlinkKeepsConnections(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, sock.ListenConfig{}, stream(d+"/s"))
	dial(t, s.Addr())
	s.Unlink()
	wantFiles(t, d)
	accept(t, s.Addr(), s.FD())
	// The path is free for a successor while this server finishes.
	listen(t, sock.ListenConfig{}, s.Addr())
	dial(t, s.Addr())
}

func TestOfManyProcessesStartingAtOnceExactlyOneWins(t *testing.T) {
	t.Parallel()
	for _, round := range []string{"on a free path", "on a stale socket"} {
		d := dir(t)
		if round == "on a stale socket" {
			stale(t, d+"/s")
		}
		var children [8]*testkit.Child
		for i := range children {
			children[i] = start(t, 0, "listen", "stream:"+d+"/s", "600", "022")
		}
		for _, c := range children {
			c.Cue(t)
		}
		won := 0
		for _, c := range children {
			switch got := c.Line(t); {
			case got == "ok":
				won++
			case !strings.Contains(got, "in use"):
				t.Errorf("%s: a loser's error is %s", round, got)
			}
		}
		if won != 1 {
			t.Errorf("%s: %d won", round, won)
		}
		dial(t, stream(d+"/s"))
		for _, c := range children {
			c.End(t)
		}
		wantFiles(t, d)
	}
}

// Its holder removes the lock file, so a starter may lock a file that is no
// longer there.
func TestNeverTwoServersWhileSocketsComeAndGo(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	var serving, won atomic.Int32
	testkit.Go(8, func(int) {
		for won.Load() < 200 && !t.Failed() {
			s, err := sock.ListenConfig{}.Listen(a)
			if err != nil {
				if !errors.Is(err, sock.ErrInUse) {
					t.Errorf("a loser's error is %v", err)
				}
				continue
			}
			won.Add(1)
			if n := serving.Add(1); n != 1 {
				t.Errorf("%d servers have the path", n)
			}
			if err := dialError(a, sock.DialConfig{}); err != nil {
				t.Errorf("the winner does not serve: %v", err)
			}
			serving.Add(-1)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A socket in whose place a tap is, as `uds tap` puts it there, is not lost; and
// its name comes back if the tap has died.
func TestTappedSocketIsNotLost(t *testing.T) {
	t.Parallel()
	for _, kind := range []sock.Type{sock.Stream, sock.Seqpacket, sock.Datagram} {
		d := dir(t)
		listen := func(name string) *sock.Socket {
			t.Helper()
			s, err := sock.ListenConfig{}.Listen(sock.Addr{Type: kind, Path: d + "/" + name})
			check(t, err)
			return s
		}
		exchange := func() (dies func()) {
			t.Helper()
			own := listen("own")
			var st unix.Stat_t
			check(t, unix.Lstat(d+"/own", &st))
			aside := sock.TapName(d+"/s", st.Ino)
			check(t, os.Rename(d+"/own", aside))
			check(t, unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, d+"/s", unix.RENAME_EXCHANGE))
			return func() { t.Helper(); check(t, own.Close()) }
		}
		s := listen("s")
		dies := exchange()
		if !s.Tapped() || s.Lost() || !s.Tapped() {
			t.Errorf("%s: tapped %v, lost %v", kind, s.Tapped(), s.Lost())
		}
		dies()
		if s.Lost() || s.Tapped() {
			t.Errorf("%s: lost after the death of its tap", kind)
		}
		wantFiles(t, d, ".s.lock", "s")

		dies = exchange()
		check(t, s.Close())
		dies()
		wantFiles(t, d)

		// Another program's server has no lock, and does not take its name back.
		s = listen("s")
		dies = exchange()
		check(t, os.Remove(d+"/.s.lock"))
		dies()
		isKept := func() {
			t.Helper()
			if _, err := (sock.ListenConfig{}).Listen(sock.Addr{Type: kind, Path: d + "/s"}); !errors.Is(err, sock.ErrInUse) {
				t.Errorf("%s: listening in the place of a hidden server: %v", kind, err)
			}
		}
		isKept()
		if kind == sock.Datagram { // connected to another socket, it refuses those that ask (EPERM)
			peer := dir(t) + "/peer"
			bound(t, sock.Addr{Type: kind, Path: peer})
			check(t, unix.Connect(s.FD(), &unix.SockaddrUnix{Name: peer}))
			isKept()
		}
		check(t, s.Close())
		wantFiles(t, d)

		// The server has died, too.
		stale(t, d+"/s")
		var st unix.Stat_t
		check(t, unix.Lstat(d+"/s", &st))
		stale(t, sock.TapName(d+"/s", st.Ino))
		check(t, listen("s").Close())
		check(t, os.Remove(sock.TapName(d+"/s", st.Ino)))

		s = listen("s")
		dies = exchange()
		check(t, os.Remove(d+"/s"))
		if !s.Lost() {
			t.Errorf("%s: not lost without its name", kind)
		}
		dies()
		check(t, s.Close())
	}
}
