package socktest

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// Not parallel: it counts the descriptors of the process.
func TestRefusedListenLeaksNoDescriptor(t *testing.T) {
	d := dir(t)
	live := stream(d + "/live")
	listen(t, sock.ListenConfig{}, live)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	refused := func() {
		for _, a := range []sock.Addr{live, stream(d + "/file"), stream(d + "/none/s")} {
			if s, err := (sock.ListenConfig{}).Listen(a); err == nil {
				_ = s.Close()
				t.Fatalf("listened on %s", a)
			}
		}
	}
	refused()
	before := descriptors(t)
	for range 10 {
		refused()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}

func TestListenRefusesLiveSocket(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			// A plain listener without our lock: the socket itself must show
			// that it is served.
			a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
			fd := bound(t, a)
			before := inode(t, a.Path)

			_, err := sock.ListenConfig{}.Listen(stream(a.Path))
			wantError(t, err, sock.ErrInUse, "listen stream:"+a.Path, "a server answers on", string(typ))
			if after := inode(t, a.Path); after != before {
				t.Errorf("inode is %d, was %d", after, before)
			}
			gone(t, beside(a.Path, ".lock"))
			dial(t, a)
			if typ != sock.Datagram {
				// The probe of the starter that failed is first in the queue.
				for range 2 {
					n, _, err := unix.Accept(fd)
					check(t, err)
					check(t, unix.Close(n))
				}
			}
		})
	}
}

// bound returns a socket that is served without this package.
func bound(t *testing.T, a sock.Addr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, sotypes[a.Type]|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(fd)) })
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path}))
	if a.Type != sock.Datagram {
		check(t, unix.Listen(fd, 8))
	}
	return fd
}

func TestListenRefusesLiveSocketOfOurOwn(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, sock.ListenConfig{}, a)
	before := inode(t, a.Path)
	_, err := sock.ListenConfig{}.Listen(a)
	wantError(t, err, sock.ErrInUse, beside(a.Path, ".lock"))
	if after := inode(t, a.Path); after != before {
		t.Errorf("inode is %d, was %d", after, before)
	}
	if _, err := os.Lstat(beside(a.Path, ".lock")); err != nil {
		t.Errorf("the holder's lock file is gone: %v", err)
	}
	dial(t, a)
}

func TestListenRefusesLiveSocketWhoseBacklogIsFull(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	fd := bound(t, a)
	check(t, unix.Listen(fd, 1))
	fill(t, a)
	_, err := sock.ListenConfig{}.Listen(a)
	wantError(t, err, sock.ErrInUse, "a server answers on")
}

func TestListenReplacesStaleSocket(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
			stale(t, a.Path)
			listen(t, sock.ListenConfig{}, a)
			dial(t, a)
		})
	}
}

// snapshot is everything that must not change about files that are not ours.
type snapshot struct {
	Mode    fs.FileMode
	Inode   uint64
	Changed int64
	Content string
	Target  string
}

func take(t *testing.T, path string) snapshot {
	t.Helper()
	info, err := os.Lstat(path)
	check(t, err)
	s := snapshot{Mode: info.Mode(), Inode: inode(t, path), Changed: info.ModTime().UnixNano()}
	switch {
	case info.Mode().IsRegular():
		b, err := os.ReadFile(path)
		check(t, err)
		s.Content = string(b)
	case info.Mode()&fs.ModeSymlink != 0:
		s.Target, err = os.Readlink(path)
		check(t, err)
	}
	return s
}

// An obstacle is a file at a path, made with content that must not be lost.
type obstacle struct {
	name, kind string
	make       func(t *testing.T, path, target string)
}

func precious(t *testing.T, path string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte("precious"), 0o640))
}

func TestF4OtherFileAtThePathIsLeftAlone(t *testing.T) {
	t.Parallel()
	n := leavesAlone(t, []obstacle{
		{"regular file", "regular file", func(t *testing.T, path, _ string) { precious(t, path) }},
		{"empty file", "regular file", func(t *testing.T, path, _ string) { check(t, os.WriteFile(path, nil, 0o600)) }},
		{"directory", "directory", func(t *testing.T, path, _ string) { check(t, os.Mkdir(path, 0o750)) }},
		{"named pipe", "named pipe", func(t *testing.T, path, _ string) { check(t, unix.Mkfifo(path, 0o640)) }},
	})
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F4",
		Done:    "servers of each type started on a regular file, an empty one, a directory, a named pipe",
		Count:   n,
		Outcome: "all refused; inode, mode, time and content unchanged",
	})
}

func TestF5SymbolicLinkAtThePathIsRefused(t *testing.T) {
	t.Parallel()
	n := leavesAlone(t, []obstacle{
		{"link to a live socket", "symbolic link", func(t *testing.T, path, target string) {
			bound(t, stream(target))
			check(t, os.Symlink(target, path))
		}},
		{"link to a stale socket", "symbolic link", func(t *testing.T, path, target string) {
			stale(t, target)
			check(t, os.Symlink(target, path))
		}},
		{"link to a regular file", "symbolic link", func(t *testing.T, path, target string) {
			precious(t, target)
			check(t, os.Symlink(target, path))
		}},
		{"dangling link", "symbolic link", func(t *testing.T, path, target string) { check(t, os.Symlink(target, path)) }},
	})
	const starts = 1000
	swaps := swapsForLink(t, starts)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F5",
		Done: "servers of each type started on links to a live and a stale socket, to a file, to nothing; " +
			"and while another process swaps the new socket for a link to a file",
		Count:   n + starts,
		Outcome: fmt.Sprintf("the links refused, those of %d swaps not followed; mode, time and content of the files they lead to unchanged", swaps),
	})
}

// leavesAlone listens with each type on each obstacle, and returns how many
// combinations it tried.
func leavesAlone(t *testing.T, obstacles []obstacle) (n int) {
	for _, o := range obstacles {
		for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
			n++
			t.Run(o.name+" "+string(typ), func(t *testing.T) {
				d := dir(t)
				path, target := d+"/s", d+"/target"
				o.make(t, path, target)
				before, names := take(t, path), ls(t, d)
				var targetBefore snapshot
				if _, err := os.Lstat(target); err == nil {
					targetBefore = take(t, target)
				}

				_, err := sock.ListenConfig{Mode: 0o666}.Listen(sock.Addr{Type: typ, Path: path})
				wantError(t, err, sock.ErrNotSocket, path+" is a "+o.kind, "left alone", "choose another path")

				if diff := cmp.Diff(before, take(t, path)); diff != "" {
					t.Errorf("it changed (-before +after):\n%s", diff)
				}
				if diff := cmp.Diff(names, ls(t, d)); diff != "" {
					t.Errorf("the directory changed (-before +after):\n%s", diff)
				}
				if targetBefore != (snapshot{}) {
					if diff := cmp.Diff(targetBefore, take(t, target)); diff != "" {
						t.Errorf("the link's target changed (-before +after):\n%s", diff)
					}
				}
			})
		}
	}
	return n
}

// swapsForLink listens n times, while another process with write permission on
// the directory puts a link to a file in place of the socket. It returns how
// often that happened in time: chmod(2) would follow the link.
func swapsForLink(t *testing.T, n int) int {
	t.Helper()
	d := dir(t)
	path, target := d+"/s", d+"/target"
	precious(t, target)
	before := take(t, target)
	over, swapped := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		for {
			select {
			case <-over:
				swapped <- count
				return
			default:
			}
			if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSocket == 0 {
				continue
			}
			if os.Symlink(target, d+"/link") == nil && os.Rename(d+"/link", path) == nil {
				count++
			}
			_ = os.Remove(path)
		}
	}()
	for range n {
		// 0777 has bits that the umask removes; they have to be set again.
		if s, err := (sock.ListenConfig{Mode: 0o777}).Listen(stream(path)); err == nil {
			check(t, s.Close())
		}
	}
	close(over)
	swaps := <-swapped
	if swaps == 0 {
		t.Error("no socket was swapped")
	}
	if diff := cmp.Diff(before, take(t, target)); diff != "" {
		t.Errorf("the link was followed: the target changed (-before +after):\n%s", diff)
	}
	return swaps
}

func ls(t *testing.T, d string) []string {
	t.Helper()
	entries, err := os.ReadDir(d)
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A user with write permission on the directory could make us create, or lock,
// a file elsewhere.
func TestListenDoesNotFollowLinkAtLock(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Symlink(d+"/elsewhere", d+"/.s.lock"))
	_, err := sock.ListenConfig{}.Listen(stream(d + "/s"))
	wantError(t, err, unix.ELOOP, d+"/.s.lock")
	gone(t, d+"/elsewhere")
	gone(t, d+"/s")
}

func TestListenWithoutPermission(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o555))
	defer func() { check(t, os.Chmod(d, 0o755)) }()
	o := start(t, stranger, nil, "listen", "stream:"+d+"/s", "0", "022").outcome(t)
	if o.Errno != unix.EACCES {
		t.Fatalf("error is %q", o.Err)
	}
	wantWords(t, o.Err, "EACCES", d+" denies this process permission to write to it: its mode is 0555, of user "+strconv.Itoa(os.Geteuid()), "this process is")
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
}

func TestListenLeavesAloneSocketThatItMayNotProbe(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	bound(t, stream(d+"/s"))
	check(t, unix.Chmod(d+"/s", uint32(closedMode())))
	before := take(t, d+"/s")
	o := start(t, stranger, nil, "listen", "stream:"+d+"/s", "0", "022").outcome(t)
	if o.Errno != unix.EACCES || o.InUse || o.NotSocket {
		t.Errorf("error is %q", o.Err)
	}
	wantWords(t, o.Err, "left alone", "mode is "+fmt.Sprintf("%04o", closedMode()))
	if diff := cmp.Diff(before, take(t, d+"/s")); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
}

func TestListenInMissingDirectory(t *testing.T) {
	t.Parallel()
	d := dir(t)
	_, err := sock.ListenConfig{}.Listen(stream(d + "/none/s"))
	wantError(t, err, unix.ENOENT, "ENOENT", "directory "+d+"/none does not exist", "create it")
}

func TestListenBelowFile(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	_, err := sock.ListenConfig{}.Listen(stream(d + "/file/s"))
	wantError(t, err, unix.ENOTDIR, d+"/file is not a directory")
}

func TestF29LongestPathWorksAndOneByteMoreIsAnErrorWithTheNumber(t *testing.T) {
	t.Parallel()
	d := dir(t)
	path := func(n int) string { return d + "/" + strings.Repeat("s", n-len(d)-1) }
	abstract := func(n int) string {
		name := "@" + filepath.Base(d)
		return name + strings.Repeat("s", n-len(name))
	}
	count := 0
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		for _, longest := range []string{path(107), abstract(107)} {
			count++
			s := listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: longest})
			conn := dial(t, s.Addr())
			if got := conn.RemoteAddr().String(); got != longest {
				t.Errorf("connected to %q, not %q", got, longest)
			}
			check(t, conn.Close())
			check(t, s.Close())
		}
		for _, tooLong := range []string{path(108), abstract(108)} {
			a := sock.Addr{Type: typ, Path: tooLong}
			_, parse := sock.ParseAddr(a.String())
			_, listen := sock.ListenConfig{}.Listen(a)
			_, dial := sock.Dial(t.Context(), a, sock.DialConfig{})
			_, bind := sock.Dial(t.Context(), sock.Addr{Type: typ, Path: d + "/s"}, sock.DialConfig{Bind: tooLong})
			for _, err := range []error{parse, listen, dial, bind} {
				count++
				wantError(t, err, sock.ErrAddress, "path is 108 bytes", "holds 107", "shorter")
			}
		}
	}
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F29",
		Done:    "paths and abstract names of 107 and of 108 bytes, of each type, parsed, listened on, dialled, and as a client's own name",
		Count:   count,
		Outcome: "107 bytes: listens and is reached under the whole name; 108: an error that names both numbers, and nothing made",
	})
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
			path := dir(t) + "/s"
			c := start(t, 0, nil, "listen", tt.typ+":"+path, tt.mode, tt.umask)
			if o := c.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			info, err := os.Lstat(path)
			check(t, err)
			if info.Mode()&fs.ModeSocket == 0 || info.Mode().Perm() != octal(tt.want) {
				t.Errorf("mode is %v, not %s", info.Mode(), tt.want)
			}
			c.end(t)
			gone(t, path)
			gone(t, beside(path, ".lock"))
		})
	}
}

// Between bind(2) and chmod(2) the file has the mode that bind gave it; under
// umask 0 every user could connect.
func TestF6SocketIsAtNoMomentMoreOpenThanAsked(t *testing.T) {
	t.Parallel()
	attempts := 0
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
			knocking := start(t, stranger, nil, "knock", a.String())
			if got := knocking.line(t); got != "knocking" {
				t.Fatal(got)
			}
			server := start(t, 0, nil, "restart", a.String(), strconv.FormatUint(uint64(closedMode()), 8))
			if o := server.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			// The last start stays until the stranger has tried to connect to
			// it.
			if got := knocking.line(t); got != "denied" {
				t.Fatal(got)
			}
			check(t, knocking.in.Close())
			var tried, passed int
			_, err := fmt.Sscan(knocking.line(t), &tried, &passed)
			check(t, err)
			if attempts += tried; passed != 0 {
				t.Errorf("the stranger got past the mode %d times of %d", passed, tried)
			}
			server.end(t)
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F6",
		Done:    "a stranger dials without a pause, for each type, while a server starts 100 times under umask 0 with a mode that keeps it out",
		Count:   300,
		Outcome: fmt.Sprintf("%d attempts, none got past the mode", attempts),
	})
}

func TestF30EmptyPathAndNULAreRefusedAndAbstractNamesHaveAFormOfTheirOwn(t *testing.T) {
	t.Parallel()
	d := dir(t)
	count := 0
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
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
			_, err := sock.ParseAddr(a.String())
			wantError(t, err, sock.ErrAddress, words)
			_, err = sock.ListenConfig{}.Listen(a)
			wantError(t, err, sock.ErrAddress, words)
			_, err = sock.Dial(t.Context(), a, sock.DialConfig{})
			wantError(t, err, sock.ErrAddress, words)
			count += 3
			if path != "" { // an empty path means no name
				_, err = sock.Dial(t.Context(), s.Addr(), sock.DialConfig{Bind: path})
				wantError(t, err, sock.ErrAddress, words)
				count++
			}
		}
		check(t, s.Close())

		// @NAME is not a file, but a file may have such a name.
		abstract, file := sock.Addr{Type: typ, Path: sock.AutoName("@")}, sock.Addr{Type: typ, Path: d + "/@x"}
		s = listen(t, sock.ListenConfig{}, abstract)
		if names := ls(t, d); names != nil || !abstract.Abstract() {
			t.Errorf("%s is in the file system: %v", abstract, names)
		}
		check(t, s.Close())
		s = listen(t, sock.ListenConfig{}, file)
		if diff := cmp.Diff([]string{".@x.lock", "@x"}, ls(t, d)); diff != "" || file.Abstract() {
			t.Errorf("%s is not a file (-want +got):\n%s", file, diff)
		}
		_, err := sock.Dial(t.Context(), sock.Addr{Type: typ, Path: "@x"}, sock.DialConfig{})
		wantError(t, err, unix.ECONNREFUSED, "no server has the name @x")
		check(t, s.Close())
		count += 3
	}
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F30",
		Done:    "paths that are empty, `@` or hold a NUL byte, of each type, parsed, listened on, dialled, and as a client's own name; `@NAME` beside a file of such a name",
		Count:   count,
		Outcome: "empty and NUL refused before any system call; `@NAME` alone is abstract, `DIR/@x` is a file",
	})
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		d := dir(t)
		s, err := sock.ListenConfig{}.Listen(sock.Addr{Type: typ, Path: d + "/s"})
		check(t, err)
		if diff := cmp.Diff([]string{".s.lock", "s"}, ls(t, d)); diff != "" {
			t.Errorf("while it listens (-want +got):\n%s", diff)
		}
		check(t, s.Close())
		check(t, s.Close())
		if names := ls(t, d); names != nil {
			t.Errorf("%s: left behind: %v", typ, names)
		}
	}
}

// The files were removed by hand, and another server has the path now.
func TestCloseLeavesSuccessorsFiles(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Datagram, sock.Seqpacket} {
		a := sock.Addr{Type: typ, Path: dir(t) + "/s"}
		s, err := sock.ListenConfig{}.Listen(a)
		check(t, err)
		check(t, os.Remove(a.Path))
		check(t, os.Remove(beside(a.Path, ".lock")))
		listen(t, sock.ListenConfig{}, a)
		socket, lock := inode(t, a.Path), inode(t, beside(a.Path, ".lock"))

		check(t, s.Close())
		if inode(t, a.Path) != socket || inode(t, beside(a.Path, ".lock")) != lock {
			t.Errorf("%s: the successor's files are others now", typ)
		}
		_, err = sock.ListenConfig{}.Listen(a)
		wantError(t, err, sock.ErrInUse, beside(a.Path, ".lock"))
		dial(t, a)
	}
}

func TestCloseLeavesSuccessorsSocketOfAnotherKind(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	s, err := sock.ListenConfig{}.Listen(stream(path))
	check(t, err)
	check(t, os.Remove(path))
	successor, err := net.Listen("unix", path)
	check(t, err)
	defer func() { check(t, successor.Close()) }()
	before := inode(t, path)

	check(t, s.Close())
	if after := inode(t, path); after != before {
		t.Errorf("inode is %d, was %d", after, before)
	}
	dial(t, stream(path))
}

func TestKilledHolderLeavesStaleSocketThatIsReplaced(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	c := start(t, 0, nil, "listen", "stream:"+path, "600", "022")
	if o := c.outcome(t); o.Err != "" {
		t.Fatal(o.Err)
	}
	check(t, c.cmd.Process.Kill())
	if err := c.cmd.Wait(); c.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("the child ended by itself: %v", err)
	}
	for _, left := range []string{path, beside(path, ".lock")} {
		if _, err := os.Lstat(left); err != nil {
			t.Errorf("a killed process cannot have removed it: %v", err)
		}
	}
	listen(t, sock.ListenConfig{}, stream(path))
	dial(t, stream(path))
}

func TestRefuseStillAcceptsEarlierConnections(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	s := listen(t, sock.ListenConfig{}, a)
	early := dial(t, a)
	_, err := early.Write([]byte("early"))
	check(t, err)

	check(t, s.Refuse())
	_, err = sock.Dial(t.Context(), a, sock.DialConfig{})
	wantError(t, err, unix.ECONNREFUSED)

	fd, _, err := unix.Accept(s.FD())
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	buf := make([]byte, 16)
	n, err := unix.Read(fd, buf)
	check(t, err)
	if got := string(buf[:n]); got != "early" {
		t.Errorf("received %q", got)
	}
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
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
	fd, _, err := unix.Accept(s.FD())
	check(t, err)
	check(t, unix.Close(fd))
	// The path is free for a successor while this server finishes.
	listen(t, sock.ListenConfig{}, s.Addr())
	dial(t, s.Addr())
}

func TestAbstractNameIsRefusedWhileInUse(t *testing.T) {
	t.Parallel()
	a := stream(sock.AutoName("@"))
	s := listen(t, sock.ListenConfig{}, a)
	dial(t, a)
	_, err := sock.ListenConfig{}.Listen(a)
	wantError(t, err, sock.ErrInUse, "abstract name "+a.Path)
	check(t, s.Close())
	listen(t, sock.ListenConfig{}, a)
}

func TestBoundSocketThatDoesNotListenYetIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, sotype := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		path := dir(t) + "/s"
		fd, err := unix.Socket(unix.AF_UNIX, sotype|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		_, err = sock.ListenConfig{}.Listen(stream(path))
		wantError(t, err, sock.ErrInUse, "a process has bound it, and does not listen: a server that is about to start, or a client's own name")
		check(t, unix.Close(fd))
		s, err := sock.ListenConfig{}.Listen(stream(path))
		check(t, err)
		check(t, s.Close())
	}
}
