package relay

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// An identity is what the kernel reports to a server about a client, besides the
// process: its effective user and group, and its supplementary groups.
type identity struct {
	uid, gid uint32
	groups   []int
}

// identityOf returns the identity of the client of a connection.
func identityOf(fd int) (*identity, error) {
	cred, err := sock.PeerCred(fd)
	if err != nil {
		return nil, err
	}
	if sock.Unmapped(cred.Uid) {
		return nil, fmt.Errorf("user %d may be any that this user namespace does not map, so the relay cannot become it; map the client's user", cred.Uid)
	}
	groups, err := sock.PeerGroups(fd)
	if err != nil {
		return nil, err
	}
	who := &identity{uid: cred.Uid, gid: cred.Gid}
	for _, g := range groups {
		who.groups = append(who.groups, int(g))
	}
	return who, nil
}

// do calls f on a thread that has the identity. No other goroutine runs on the
// thread, which ends with this one as it stays locked. Nor does the runtime
// start other threads from it.
func (who *identity) do(f func()) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread would not end
			failed <- who.do(f)
			runtime.UnlockOSThread()
			return
		}
		err := who.assume()
		if err == nil {
			f()
		}
		failed <- err
	}()
	return <-failed
}

// assume makes this thread effectively the client. Package syscall would change
// all threads, as POSIX requires. The real and the saved user stay the relay's:
// otherwise the client could send the thread a signal, kill(2).
func (who *identity) assume() error {
	const same = ^uintptr(0)
	err := os.NewSyscallError("setgroups", unix.Setgroups(who.groups))
	if err == nil {
		err = set("setresgid", setresgid, same, uintptr(who.gid), same)
	}
	if err == nil {
		err = set("setresuid", setresuid, same, uintptr(who.uid), same)
	}
	if err != nil {
		return fmt.Errorf("become the client's user %d, group %d: %w; the relay needs root, with the capabilities SETUID and SETGID", who.uid, who.gid, err)
	}
	return nil
}

func set(name string, call, real, effective, saved uintptr) error {
	if _, _, errno := unix.RawSyscall(call, real, effective, saved); errno != 0 {
		return os.NewSyscallError(name, errno)
	}
	return nil
}

// As calls f on a thread that is effectively the process at the other end of a
// connection. It needs root.
func As(fd int, f func()) error {
	who, err := identityOf(fd)
	if err != nil {
		return err
	}
	return who.do(f)
}
