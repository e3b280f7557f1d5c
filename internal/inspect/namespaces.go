package inspect

import (
	"fmt"
	"os"
	"runtime"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock/why"
)

// A namespace is a network namespace and the Unix sockets in it.
type namespace struct {
	number  uint64 // of its inode, as in net:[N]
	sockets []why.Socket
	waiting map[uint32][]uint32 // by listening socket: its clients that are not accepted yet
}

// namespaces asks sock_diag(7) for the sockets in every network namespace of a
// process, its own first: the kernel reports only those of the caller's. denied
// is the number of namespaces that it cannot enter.
func namespaces() (all []namespace, denied int, err error) {
	processes, err := procfs.AllProcs()
	if err != nil {
		return nil, 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It is never unlocked. So the thread ends with this goroutine, and no
		// other goroutine finds itself in a foreign namespace.
		runtime.LockOSThread()
		seen := map[uint64]bool{}
		paths := []string{"/proc/thread-self/ns/net"}
		for _, p := range processes {
			paths = append(paths, fmt.Sprintf("/proc/%d/ns/net", p.PID))
		}
		for i, path := range paths {
			var st unix.Stat_t
			if statErr := unix.Stat(path, &st); i > 0 && (statErr != nil || seen[st.Ino]) {
				continue // the process has ended, or belongs to another user
			}
			seen[st.Ino] = true
			if i > 0 && enter(path) != nil {
				denied++
				continue
			}
			ns := namespace{number: st.Ino, waiting: map[uint32][]uint32{}}
			if ns.sockets, err = why.Sockets(); err != nil {
				err = fmt.Errorf("sock_diag: %w; the kernel needs CONFIG_UNIX_DIAG, or its module unix_diag", err)
				return
			}
			for _, s := range ns.sockets {
				if s.State == why.Listening && s.Queue != nil && *s.Queue > 0 {
					ns.waiting[s.Number], _ = why.Waiting(s.Number) // the count is known anyway
				}
			}
			all = append(all, ns)
		}
	}()
	<-done
	return all, denied, err
}

// enter moves this thread into a network namespace, setns(2).
func enter(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}
