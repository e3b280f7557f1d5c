package uds_test

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

	"github.com/udsecho/udsecho/internal/uds"
)

// Not parallel: it counts the descriptors of the process.
func TestRefusedListenLeaksNoDescriptor(t *testing.T) {
	d := dir(t)
	live := stream(d + "/live")
	listen(t, uds.ListenConfig{}, live)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	refused := func() {
		for _, a := range []uds.Addr{live, stream(d + "/file"), stream(d + "/none/s")} {
			if s, err := (uds.ListenConfig{}).Listen(a); err == nil {
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
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			// A plain listener, without our lock: the socket itself must tell.
			a := uds.Addr{Type: typ, Path: dir(t) + "/s"}
			fd := bound(t, a)
			before := inode(t, a.Path)

			_, err := uds.ListenConfig{}.Listen(stream(a.Path))
			wantError(t, err, uds.ErrInUse, "listen stream:"+a.Path, "a server answers on", string(typ))
			if after := inode(t, a.Path); after != before {
				t.Errorf("inode is %d, was %d", after, before)
			}
			gone(t, a.Path+".lock")
			dial(t, a)
			if typ != uds.Datagram {
				// The probe of the refused starter is first in the queue.
				for range 2 {
					n, _, err := unix.Accept(fd)
					check(t, err)
					check(t, unix.Close(n))
				}
			}
		})
	}
}

// bound is a socket that is served without this package.
func bound(t *testing.T, a uds.Addr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, sotypes[a.Type]|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Close(fd)) })
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path}))
	if a.Type != uds.Datagram {
		check(t, unix.Listen(fd, 8))
	}
	return fd
}

func TestListenRefusesLiveSocketOfOurOwn(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	listen(t, uds.ListenConfig{}, a)
	before := inode(t, a.Path)
	_, err := uds.ListenConfig{}.Listen(a)
	wantError(t, err, uds.ErrInUse, a.Path+".lock")
	if after := inode(t, a.Path); after != before {
		t.Errorf("inode is %d, was %d", after, before)
	}
	if _, err := os.Lstat(a.Path + ".lock"); err != nil {
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
	_, err := uds.ListenConfig{}.Listen(a)
	wantError(t, err, uds.ErrInUse, "a server answers on")
}

func TestListenReplacesStaleSocket(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			a := uds.Addr{Type: typ, Path: dir(t) + "/s"}
			stale(t, a.Path)
			listen(t, uds.ListenConfig{}, a)
			dial(t, a)
		})
	}
}

// snapshot is all that must not change of what is not ours.
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

func TestListenLeavesAloneWhatIsNoSocket(t *testing.T) {
	t.Parallel()
	precious := func(t *testing.T, path string) {
		check(t, os.WriteFile(path, []byte("precious"), 0o640))
	}
	for _, tt := range []struct {
		name, kind string
		make       func(t *testing.T, path, target string)
	}{
		{"regular file", "regular file", func(t *testing.T, path, _ string) { precious(t, path) }},
		{"empty file", "regular file", func(t *testing.T, path, _ string) { check(t, os.WriteFile(path, nil, 0o600)) }},
		{"directory", "directory", func(t *testing.T, path, _ string) { check(t, os.Mkdir(path, 0o750)) }},
		{"named pipe", "named pipe", func(t *testing.T, path, _ string) { check(t, unix.Mkfifo(path, 0o640)) }},
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
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			path, target := d+"/s", d+"/target"
			tt.make(t, path, target)
			before, names := take(t, path), ls(t, d)
			var targetBefore snapshot
			if _, err := os.Lstat(target); err == nil {
				targetBefore = take(t, target)
			}

			_, err := uds.ListenConfig{Mode: 0o666}.Listen(stream(path))
			wantError(t, err, uds.ErrNotSocket, path+" is a "+tt.kind, "left alone", "choose another path")

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

// Somebody who may write to the directory could make us create, or lock, a
// file elsewhere.
func TestListenDoesNotFollowLinkAtLock(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.Symlink(d+"/elsewhere", d+"/s.lock"))
	_, err := uds.ListenConfig{}.Listen(stream(d + "/s"))
	wantError(t, err, unix.ELOOP, d+"/s.lock")
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
	wantWords(t, o.Err, "EACCES", d+" is owned by "+strconv.Itoa(os.Geteuid())+":", "mode 0555", "this process is")
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
	wantWords(t, o.Err, "left alone", "mode "+fmt.Sprintf("%04o", closedMode()))
	if diff := cmp.Diff(before, take(t, d+"/s")); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
}

func TestListenInMissingDirectory(t *testing.T) {
	t.Parallel()
	d := dir(t)
	_, err := uds.ListenConfig{}.Listen(stream(d + "/none/s"))
	wantError(t, err, unix.ENOENT, "ENOENT", "directory "+d+"/none does not exist", "create it")
}

func TestListenBelowFile(t *testing.T) {
	t.Parallel()
	d := dir(t)
	check(t, os.WriteFile(d+"/file", nil, 0o600))
	_, err := uds.ListenConfig{}.Listen(stream(d + "/file/s"))
	wantError(t, err, unix.ENOTDIR, d+"/file is not a directory")
}

func TestLengthOfPath(t *testing.T) {
	t.Parallel()
	d := dir(t)
	path := func(n int) string { return d + "/" + strings.Repeat("s", n-len(d)-1) }
	abstract := func(n int) string {
		name := "@" + filepath.Base(d)
		return name + strings.Repeat("s", n-len(name))
	}
	for _, longest := range []string{path(107), abstract(107)} {
		a := stream(longest)
		l, err := listen(t, uds.ListenConfig{}, a).Listener()
		check(t, err)
		if got := dial(t, a).RemoteAddr().String(); got != longest {
			t.Errorf("connected to %q, not %q", got, longest)
		}
		check(t, l.Close())
	}
	for tooLong, words := range map[string][]string{
		path(108):     {"path is 108 bytes", "holds 107", "shorter"},
		abstract(108): {"path is 108 bytes", "holds 107", "shorter"},
	} {
		_, err := uds.ListenConfig{}.Listen(stream(tooLong))
		wantError(t, err, uds.ErrAddress, words...)
		_, err = uds.DialConfig{}.Dial(t.Context(), stream(tooLong))
		wantError(t, err, uds.ErrAddress, words...)
		_, err = uds.DialConfig{Bind: tooLong}.Dial(t.Context(), stream(d+"/s"))
		wantError(t, err, uds.ErrAddress, words...)
	}
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
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
		// What the umask leaves, as nothing was asked for.
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
			gone(t, path+".lock")
		})
	}
}

// Between bind(2) and chmod(2) the file has the mode that bind gave it; under
// umask 0 that lets everybody in.
func TestSocketIsAtNoMomentMoreOpenThanAsked(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			a := uds.Addr{Type: typ, Path: dir(t) + "/s"}
			knocking := start(t, stranger, nil, "knock", a.String())
			if got := knocking.line(t); got != "knocking" {
				t.Fatal(got)
			}
			server := start(t, 0, nil, "restart", a.String(), strconv.FormatUint(uint64(closedMode()), 8))
			if o := server.outcome(t); o.Err != "" {
				t.Fatal(o.Err)
			}
			// The last of the starts stays until the stranger has met one.
			if got := knocking.line(t); got != "denied" {
				t.Fatal(got)
			}
			check(t, knocking.in.Close())
			if got := knocking.line(t); got != "0" {
				t.Errorf("the stranger got past the mode %s times", got)
			}
			server.end(t)
		})
	}
}

func TestListenOnWhatCannotBeMeant(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		_, err := uds.ListenConfig{}.Listen(uds.Addr{Type: typ})
		wantError(t, err, uds.ErrAddress, "path is empty")
		_, err = uds.DialConfig{}.Dial(t.Context(), uds.Addr{Type: typ})
		wantError(t, err, uds.ErrAddress, "path is empty")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, typ := range []uds.Type{uds.Stream, uds.Datagram, uds.Seqpacket} {
		d := dir(t)
		s, err := uds.ListenConfig{}.Listen(uds.Addr{Type: typ, Path: d + "/s"})
		check(t, err)
		if diff := cmp.Diff([]string{"s", "s.lock"}, ls(t, d)); diff != "" {
			t.Errorf("while it listens (-want +got):\n%s", diff)
		}
		check(t, s.Close())
		check(t, s.Close())
		if names := ls(t, d); names != nil {
			t.Errorf("%s: left behind: %v", typ, names)
		}
	}
}

func TestListenerClosesAllOfTheSocket(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s, err := uds.ListenConfig{}.Listen(stream(d + "/s"))
	check(t, err)
	l, err := s.Listener()
	check(t, err)
	check(t, l.Close())
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
	_, err = uds.DialConfig{}.Dial(t.Context(), stream(d+"/s"))
	wantError(t, err, unix.ENOENT)
}

func TestCloseLeavesSuccessorsSocket(t *testing.T) {
	t.Parallel()
	path := dir(t) + "/s"
	s, err := uds.ListenConfig{}.Listen(stream(path))
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
	for _, left := range []string{path, path + ".lock"} {
		if _, err := os.Lstat(left); err != nil {
			t.Errorf("a killed process cannot have removed it: %v", err)
		}
	}
	listen(t, uds.ListenConfig{}, stream(path))
	dial(t, stream(path))
}

func TestRefuseStillAcceptsWhoHadConnected(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	s := listen(t, uds.ListenConfig{}, a)
	early := dial(t, a)
	_, err := early.Write([]byte("early"))
	check(t, err)

	check(t, s.Refuse())
	_, err = uds.DialConfig{}.Dial(t.Context(), a)
	wantError(t, err, unix.ECONNREFUSED)

	fd, _, err := unix.Accept(s.FD)
	check(t, err)
	defer func() { check(t, unix.Close(fd)) }()
	buf := make([]byte, 16)
	n, err := unix.Read(fd, buf)
	check(t, err)
	if got := string(buf[:n]); got != "early" {
		t.Errorf("received %q", got)
	}
	if _, _, err := unix.Accept(s.FD); err != unix.EAGAIN && err != unix.EINVAL {
		t.Errorf("another accept gives %v", err)
	}
}

func TestUnlinkKeepsConnections(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, uds.ListenConfig{}, stream(d+"/s"))
	dial(t, s.Addr)
	s.Unlink()
	if names := ls(t, d); names != nil {
		t.Errorf("left behind: %v", names)
	}
	fd, _, err := unix.Accept(s.FD)
	check(t, err)
	check(t, unix.Close(fd))
	// The path is free for a successor while this one finishes.
	listen(t, uds.ListenConfig{}, s.Addr)
	dial(t, s.Addr)
}

func TestAbstractNameIsRefusedWhileInUse(t *testing.T) {
	t.Parallel()
	a := stream(uds.AutoName("@"))
	s := listen(t, uds.ListenConfig{}, a)
	dial(t, a)
	_, err := uds.ListenConfig{}.Listen(a)
	wantError(t, err, uds.ErrInUse, "abstract name "+a.Path)
	check(t, s.Close())
	listen(t, uds.ListenConfig{}, a)
}

func TestBoundSocketThatNobodyListensOnYetIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, sotype := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		path := dir(t) + "/s"
		fd, err := unix.Socket(unix.AF_UNIX, sotype|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		_, err = uds.ListenConfig{}.Listen(stream(path))
		wantError(t, err, uds.ErrInUse, "somebody has bound it, and does not listen yet")
		check(t, unix.Close(fd))
		s, err := uds.ListenConfig{}.Listen(stream(path))
		check(t, err)
		check(t, s.Close())
	}
}
