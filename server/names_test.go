package main_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// A swindler is a datagram client that sends under a name and puts another
// file there before the reply arrives.
type swindler struct {
	server, name, link, target string // paths
	flush                      int    // a socket with an abstract name
}

// bind makes a socket of the swindler's name.
func (s *swindler) bind() (fd int, err error) {
	if fd, err = datagramSocket(s.name); err == nil {
		err = unix.Chmod(s.name, 0o666)
	}
	return fd, err
}

func datagramSocket(name string) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	late := unix.NsecToTimeval(patience.Nanoseconds())
	return fd, errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: name}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late))
}

// receiveFrom is recvfrom(2). If the socket has a timeout, a signal of Go's
// runtime interrupts it, signal(7).
func receiveFrom(fd int, buf []byte) (n int, from unix.Sockaddr, err error) {
	for {
		n, from, err = unix.Recvfrom(fd, buf, 0)
		if err != unix.EINTR {
			return n, from, err
		}
	}
}

func (s *swindler) send(fd int, words string) error {
	return unix.Sendto(fd, []byte(words), 0, &unix.SockaddrUnix{Name: s.server})
}

// settle waits until the server has received all earlier messages: it answers
// in order.
func (s *swindler) settle() error {
	if err := s.send(s.flush, "settled?"); err != nil {
		return err
	}
	_, _, err := receiveFrom(s.flush, make([]byte, 100))
	return err
}

// swap makes the server answer once, or not, and then replaces the name.
func (s *swindler) swap(answered bool) error {
	fd, err := s.bind()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if answered {
		if err := errors.Join(s.send(fd, "honest"), s.settle()); err != nil {
			return err
		}
	}
	if err := errors.Join(unix.Unlink(s.name), unix.Symlink(s.target, s.name)); err != nil {
		return err
	}
	defer func() { _ = unix.Unlink(s.name) }()
	return errors.Join(s.send(fd, "forged"), s.settle())
}

// race swaps name and link all the time while it sends. It returns the number
// of swaps.
func (s *swindler) race() (swaps int, err error) {
	fd, err := s.bind()
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Symlink(s.target, s.link); err != nil {
		return 0, err
	}
	defer func() { _, _ = unix.Unlink(s.name), unix.Unlink(s.link) }()
	var over atomic.Bool
	var flip sync.WaitGroup
	var flipErr error
	flip.Go(func() {
		for !over.Load() && flipErr == nil {
			flipErr = unix.Renameat2(unix.AT_FDCWD, s.name, unix.AT_FDCWD, s.link, unix.RENAME_EXCHANGE)
			swaps++
		}
	})
	for range 3 {
		err = errors.Join(err, s.send(fd, "forged"))
	}
	err = errors.Join(err, s.settle())
	over.Store(true)
	flip.Wait()
	return swaps, errors.Join(err, flipErr)
}

func TestF36SwappedName(t *testing.T) {
	testkit.NeedRoot(t, "to be the stranger")
	t.Parallel()
	d := open(t)
	server := start(t, d, "server", "--listen", "datagram:all", "--mode", "0666", "--log-level", "warn", "--admin", "admin1")
	picky := start(t, d, "server", "--listen", "datagram:some", "--mode", "0666", "--log-level", "warn", "--allow-uid", strconv.Itoa(friend), "--admin", "admin2")
	awaitServer(t, d+"/admin1")
	awaitServer(t, d+"/admin2")

	secret, err := datagramSocket(d + "/secret")
	check(t, errors.Join(err, os.Chmod(d+"/secret", 0o600))) // only root may write to it
	defer func() { check(t, unix.Close(secret)) }()

	const each = 500
	swaps, raced := 0, 0
	asStranger(t, func() error {
		for _, path := range []string{"all", "some"} {
			s := swindler{d + "/" + path, d + "/me", d + "/link", d + "/secret", -1}
			var err error
			if s.flush, err = datagramSocket("@swindler." + d + path); err != nil {
				return err
			}
			defer func() { _ = unix.Close(s.flush) }()
			for i := range each {
				if err := s.swap(i%2 == 0); err != nil {
					return fmt.Errorf("swap %d at %s: %w", i, path, err)
				}
				swaps++
			}
			for most := raced + each; raced < most; {
				n, err := s.race()
				if err != nil {
					return fmt.Errorf("race %d at %s: %w", raced, path, err)
				}
				raced += n
			}
		}
		return nil
	})
	// It receives the messages of processes that may write to it, and the first is
	// this one.
	mine, err := datagramSocket("@honest." + d)
	check(t, err)
	check(t, errors.Join(unix.Sendto(mine, []byte("honest"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: d + "/secret"}), unix.Close(mine)))
	first := make([]byte, 100)
	if n, _, err := receiveFrom(secret, first); err != nil || string(first[:n]) != "honest" {
		t.Errorf("after %d swaps and %d in a race, the socket of another user received %q, %v", swaps, raced, first[:max(n, 0)], err)
	}
	check(t, os.Remove(d+"/secret"))
	server.Signal(t, syscall.SIGTERM)
	server.WantStatus(t, 0)
	picky.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F36", Done: "a client replaces its name by a link to a socket that only root may write to, before a server of root answers, or refuses: after an answer, before the first, and in a race", Count: swaps + each*2,
		Outcome: "0 messages at that socket; others served meanwhile",
	})
}

// asNobody makes a process run as the overflow user in a user namespace that
// has no other user; outside it is the friend.
func asNobody() *syscall.SysProcAttr {
	const nobody = 65534
	only := []syscall.SysProcIDMap{{ContainerID: nobody, HostID: friend, Size: 1}}
	return &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: only, GidMappings: only, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
	}
}

// answered runs a client of the stranger, which must get its answer, or none.
func answered(t *testing.T, want bool, d string, args ...string) {
	t.Helper()
	timeout, status := time.Second, 1
	if want {
		timeout, status = patience, 0
	}
	startAs(t, stranger, d, append(args, "--timeout", timeout.String())...).WantStatus(t, status)
}

// The server's own user and all strangers have the same number here.
func TestF45UnmappedUsers(t *testing.T) {
	testkit.NeedRoot(t, "to be another user")
	testkit.NeedNamespace(t, "--user")
	t.Parallel()
	asked := 0
	for _, tt := range []struct {
		args              []string
		served, datagrams bool
	}{
		{nil, true, false},
		{[]string{"--allow-uid", "1"}, false, false},
		{[]string{"--allow-uid", "65534"}, true, true},
	} {
		t.Run(fmt.Sprint(tt.args), func(t *testing.T) {
			d := open(t)
			server := serving(t, startAttr(t, asNobody(), d, append([]string{"server", "--mode", "0666", "--admin", "admin", "--max-per-user", "1",
				"--listen", strings.Join(places, ",")}, tt.args...)...))
			for _, c := range []struct {
				address, bind string
				want          bool
			}{
				{places[0], "@udsecho.healthcheck." + d, tt.served},
				{places[1], "auto", tt.served},
				{places[2], "@" + d, tt.datagrams},
				{places[2], "auto", tt.datagrams},
			} {
				answered(t, c.want, d, "client", "--connect", c.address, "--bind", c.bind)
				asked++
			}
			if !tt.served {
				server.Err.Await(t, 4, "user 65534, group 65534 is not allowed")
			} else {
				server.Err.Await(t, 1, "received ") // from a client that has a health check's name, too
			}
			if tt.served && !tt.datagrams {
				server.Err.Await(t, 1, "cannot reply, because the kernel does not report the client's user here; map the user")
				first := connect(t, "unix", d+"/s")
				check(t, echoed(first, "first"))
				startAs(t, stranger, d, "client", "--connect", places[0]).WantStatus(t, 1) // the second of two strangers
				server.Err.Await(t, 1, "connection limit per user (")
				check(t, first.Close())
			}
			server.Stop(t)
		})
	}

	// A health check does not trust a stranger.
	d := open(t)
	impostor := serving(t, startAs(t, stranger, d, "server", "--listen", "s", "--mode", "0666"))
	client := startAttr(t, asNobody(), d, "server", "healthcheck", "--timeout", patience.String(), "--listen", "s")
	client.WantStatus(t, 1)
	wantWords(t, client.Err.String(), "user 65534 serves there, which may be any that this user namespace does not map")
	asked++
	impostor.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F45", Done: "clients of an unmapped user at a server that runs as 65534 in a user namespace of its own, without `--allow-uid`, with that of another user, and of 65534; and the health check of a server that is an unmapped user's", Count: asked,
		Outcome: "served, but no datagram answered; refused; served; refused; counted as one user, and no name makes any a health check",
	})
}

// A client in another network namespace sends under the abstract name of a
// socket in the server's namespace. The kernel reports the name alone.
func TestF57NameOrOwnerIsNoIdentity(t *testing.T) {
	testkit.NeedRoot(t, "to be the stranger")
	testkit.NeedNamespace(t, "--user", "--map-root-user", "--net")
	t.Parallel()
	d := open(t)
	all := serve(t, d, "--listen", "datagram:all", "--mode", "0666")
	some := serve(t, d, "--listen", "datagram:some", "--mode", "0666", "--allow-uid", strconv.Itoa(friend))
	secret, err := datagramSocket("@secret." + d)
	check(t, err)
	defer func() { _ = unix.Close(secret) }()
	asked := 0
	ask := func(want bool, args ...string) {
		t.Helper()
		answered(t, want, d, args...)
		asked++
	}
	const notOwn, unknown = "cannot reply to a name that is not the client's own socket",
		"cannot reply, because the kernel does not report the owner of the socket of a client of user 10003: " +
			"its abstract name does not exist in the server's network namespace; bind a path"
	for i := range testkit.Count(2, 10) {
		for _, server := range []*process{all, some} {
			path := "datagram:" + server.Cmd.Args[2][len("datagram:"):]
			ask(false, "unshare", "--user", "--map-root-user", "--net", testkit.Program("client"), "--connect", path, "--bind", "@secret."+d, "--retry", "0s")
			server.Err.Await(t, i+1, notOwn)
		}
	}
	ask(false, "unshare", "--user", "--map-root-user", "--net", testkit.Program("client"), "--connect", "datagram:all", "--bind", "@nowhere."+d)
	all.Err.Await(t, 1, unknown)
	for range 2 { // the second time, the server knows the name
		ask(true, "client", "--connect", "datagram:all", "--bind", "@own."+d)
	}
	// The name's owner is answered as before.
	for _, path := range []string{"all", "some"} {
		check(t, unix.Sendto(secret, []byte("from root"), 0, &unix.SockaddrUnix{Name: d + "/" + path}))
		reply := make([]byte, 100)
		if n, _, err := receiveFrom(secret, reply); err != nil || string(reply[:n]) != "from root" {
			t.Errorf("the owner of the name received %q, %v", reply[:max(n, 0)], err)
		}
	}
	// A file system may show another owner than that of the socket, as after
	// chown(2). The kernel's record decides, where there is one.
	shown := func(name string, fd int) {
		t.Helper()
		check(t, errors.Join(os.Chown(d+"/"+name, stranger, stranger), os.Chmod(d+"/"+name, 0o666)))
		check(t, unix.Sendto(fd, []byte(name), 0, &unix.SockaddrUnix{Name: d + "/all"}))
		asked++
	}
	mine, err := datagramSocket(d + "/mine")
	check(t, err)
	defer func() { _ = unix.Close(mine) }()
	shown("mine", mine)
	reply := make([]byte, 100)
	if n, _, err := receiveFrom(mine, reply); err != nil || string(reply[:n]) != "mine" {
		t.Errorf("a socket whose file shows another owner received %q, %v; the server wrote:\n%s", reply[:max(n, 0)], err, &all.Err)
	}
	far := make(chan int)
	go func() {
		runtime.LockOSThread() // the thread ends, and its namespace with it
		fd := -1
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = datagramSocket(d + "/far")
		}
		if err != nil {
			t.Error(err)
		}
		far <- fd
	}()
	fd := <-far
	defer func() { _ = unix.Close(fd) }()
	shown("far", fd)
	all.Err.Await(t, 1, "cannot reply, because the kernel does not report the owner of the socket of a client of user 0: "+
		"the file system shows user 10003 as the owner of its socket, and the socket belongs to another network namespace")
	// A server that is alone in its namespace answers there.
	alone := serving(t, start(t, d, "unshare", "--net", testkit.Program("server"), "--listen", "datagram:alone", "--mode", "0666"))
	start(t, d, "nsenter", "--net=/proc/"+strconv.Itoa(alone.Pid())+"/ns/net", testkit.Program("client"), "--connect", "datagram:alone", "--bind", "@inside").WantStatus(t, 0)
	for _, p := range []*process{all, some, alone} {
		p.Terminate(t)
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F57", Done: "clients in another network namespace that send under the abstract name of another user's socket in the server's namespace, to a server that answers them and to one that rejects them; and under a name that does not exist there; and clients whose file shows another owner, with and without a record of the kernel", Count: asked,
		Outcome: "no reply and no rejection at that socket, each logged with its reason; its owner, honest clients, and the client with a record, answered; the one without not, and the log has the reason",
	})
}

// On such a file system a client can have any other user's socket shown as its
// own, or its own as another user's.
func TestF57FileSystemThatShowsOneOwnerForAll(t *testing.T) {
	testkit.NeedRoot(t, "to mount, and to be the stranger")
	need(t, "bindfs", "bindfs")
	t.Parallel()
	d := open(t)
	check(t, errors.Join(os.Mkdir(d+"/back", 0o777), os.Chmod(d+"/back", 0o777), os.Mkdir(d+"/front", 0o777)))
	if status, _, stderr := run(t, d, "", "bindfs", "--force-user="+strconv.Itoa(stranger), "--perms=0777", "back", "front"); status != 0 {
		testkit.Missing(t, "a FUSE mount ("+stderr+")", "run the tests where /dev/fuse is")
	}
	t.Cleanup(func() { check(t, unix.Unmount(d+"/front", unix.MNT_DETACH)) })
	server := serve(t, d, "--listen", "datagram:all", "--mode", "0666")
	secret, err := datagramSocket(d + "/front/secret")
	check(t, err)
	defer func() { _ = unix.Close(secret) }()
	asStranger(t, func() error {
		fd, err := datagramSocket(d + "/front/me")
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return errors.Join(unix.Unlink(d+"/front/me"), unix.Rename(d+"/front/secret", d+"/front/me"),
			unix.Sendto(fd, []byte("forged"), 0, &unix.SockaddrUnix{Name: d + "/all"}))
	})
	server.Err.Await(t, 1, "cannot reply to a name that is not the client's own socket")
	// The socket's owner is answered, although the file shows the stranger.
	honest, err := datagramSocket(d + "/front/honest")
	check(t, err)
	defer func() { _ = unix.Close(honest) }()
	check(t, unix.Sendto(honest, []byte("honest"), 0, &unix.SockaddrUnix{Name: d + "/all"}))
	reply := make([]byte, 100)
	if n, _, err := receiveFrom(honest, reply); err != nil || string(reply[:n]) != "honest" {
		t.Errorf("received %q, %v; the server wrote:\n%s", reply[:max(n, 0)], err, &server.Err)
	}
	if n, _, err := unix.Recvfrom(secret, reply, unix.MSG_DONTWAIT); err != unix.EAGAIN {
		t.Errorf("another user's socket received %q, %v", reply[:max(n, 0)], err)
	}
	server.Terminate(t)
}

// The server keeps the sockets of some clients, looks them up again if it
// must, and needs few descriptors. The test is not parallel: a process that
// another test starts in its own user namespace has copies of the sockets for
// a moment, and then a closed socket is still open.
func TestNamesOfManyClients(t *testing.T) {
	d := dir(t)
	server := serve(t, d, "--listen", "datagram:d", "--log-level", "info")
	const clients = 200
	fds := make([]int, clients)
	name := func(i int) string { return fmt.Sprintf("%s/%d", d, i) }
	var err error
	for i := range fds {
		fds[i], err = datagramSocket(name(i))
		check(t, err)
	}
	back := make([]byte, 100)
	ask := func(i int, words string) {
		t.Helper()
		check(t, unix.Sendto(fds[i], []byte(words), 0, &unix.SockaddrUnix{Name: d + "/d"}))
		n, _, err := receiveFrom(fds[i], back)
		if err != nil || string(back[:n]) != words {
			t.Fatalf("%s: client %d: %d bytes came back, %v; the server:\n%s", words, i, n, err, &server.Err)
		}
	}
	askAll := func(words string) {
		t.Helper()
		for i := range fds {
			ask(i, fmt.Sprint(words, i))
		}
	}
	askAll("first")
	askAll("second")
	for i := range fds { // another socket has the name
		check(t, errors.Join(unix.Close(fds[i]), unix.Unlink(name(i))))
		fds[i], err = datagramSocket(name(i))
		check(t, err)
		ask(i, "anew")
	}
	if n := descriptors(t, server); n > 160 { // 128 names, and the server's own
		t.Errorf("%d descriptors are open", n)
	}
	limitFiles(t, server, 20)
	askAll("third")
	for i := range fds {
		check(t, errors.Join(unix.Close(fds[i]), unix.Unlink(name(i))))
	}
	server.Stop(t)
}
