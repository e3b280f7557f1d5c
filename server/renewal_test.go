package main_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestF8RemovedSocketFilesAreRecreated(t *testing.T) {
	t.Parallel()
	d := dir(t)
	var servers []*process
	var addrs []string
	for i, more := range [][]string{nil, {"--takeover"}} {
		var own []string
		for _, kind := range kinds {
			own = append(own, fmt.Sprintf("%[1]s:%[1]s%[2]d", kind, i))
		}
		addrs = append(addrs, own...)
		servers = append(servers, serve(t, d, append(more, "--listen", strings.Join(own, ","))...))
	}
	rounds := testkit.Count(2, 5)
	slowest := time.Duration(0)
	for round := range rounds {
		var goOn []func()
		for _, s := range servers {
			goOn = append(goOn, s.Pause(t))
		}
		for _, a := range addrs {
			_, path, _ := strings.Cut(a, ":")
			check(t, os.Remove(d+"/"+path))
			health := start(t, d, "server", "healthcheck", "--timeout", patience.String(), "--listen", a)
			health.WantStatus(t, 1)
			wantWords(t, health.Err.String(), "no such file or directory (ENOENT)")
		}
		began := time.Now()
		for i, s := range servers {
			goOn[i]()
			s.Err.Await(t, 3*(round+1), "was removed: listening again")
		}
		slowest = max(slowest, time.Since(began))
		wantHealthy(t, d, addrs...)
	}
	servers[0].Terminate(t)
	servers[1].Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F8", Done: "socket files of three types removed, with and without `--takeover`", Count: rounds * len(addrs),
		Outcome: fmt.Sprintf("the health check failed; every socket was recreated, in %.1f s at most", slowest.Seconds()),
	})
}

func TestF32VolumeFullReadOnlyOrGone(t *testing.T) {
	t.Parallel()
	need(t, "nsenter", "util-linux")
	testkit.NeedRoot(t, "to mount")
	testkit.NeedNamespace(t, "--mount")
	on := func(options, path string) *process {
		d := dir(t)
		check(t, os.Mkdir(d+"/vol", 0o755))
		const mount = `mount -t tmpfs -o "$1" none vol && exec "$0" --listen "$2"`
		return start(t, d, "unshare", "--mount", "sh", "-c", mount, testkit.Program("server"), options, path)
	}
	for _, tt := range []struct {
		name, options, path, words string
	}{
		{"full", "nr_inodes=2", "vol/s", "no space left on device (ENOSPC): the file system of vol is full; make room"},
		{"full to the last", "nr_inodes=1", "vol/s", "no space left on device (ENOSPC): the file system of vol is full; make room"},
		{"read-only", "ro", "vol/s", "read-only file system (EROFS): directory vol is on a read-only file system or mount; mount it writable"},
		{"gone", "size=4k", "vol/none/s", "no such file or directory (ENOENT): directory vol/none does not exist; create it, or mount the volume there"},
	} {
		server := on(tt.options, tt.path)
		server.WantStatus(t, 1)
		if stderr := server.Err.String(); server.Out.String() != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.words) {
			t.Errorf("%s: output %q, error %q", tt.name, &server.Out, stderr)
		}
	}

	server := serving(t, on("nr_inodes=3", "vol/s")) // its own directory, a lock, a socket
	d := server.Cmd.Dir
	vol := fmt.Sprintf("/proc/%d/cwd/vol", server.Pid())
	live := connect(t, "unix", vol+"/s")
	check(t, echoed(live, "before"))
	inside := func(args ...string) {
		t.Helper()
		start(t, d, append([]string{"nsenter", fmt.Sprintf("--target=%d", server.Pid()), "--mount"}, append(args, d+"/vol")...)...).WantStatus(t, 0)
	}
	// Full: the removed socket uses its inode as long as it is open.
	check(t, os.Remove(vol+"/s"))
	server.Err.Await(t, 2, "vol/s was removed, and cannot be recreated now: listen again on stream:vol/s: no space left on device (ENOSPC)")
	check(t, echoed(live, "the volume is full"))
	inside("mount", "-o", "remount,nr_inodes=4")
	server.Err.Await(t, 1, "vol/s was removed: listening again")
	// Read-only: connecting needs no write access.
	inside("mount", "-o", "remount,bind,ro")
	check(t, errors.Join(echoed(live, "the volume is read-only"), echoed(connect(t, "unix", vol+"/s"), "new")))
	inside("mount", "-o", "remount,bind,rw")
	// Removed, and then back.
	inside("umount", "-l")
	server.Err.Await(t, 2, "vol/s was removed: listening again") // in the directory below
	check(t, echoed(live, "the volume is gone"))
	check(t, echoed(connect(t, "unix", d+"/vol/s"), "new"))
	check(t, live.Close())
	server.Signal(t, syscall.SIGTERM)
	server.WantStatus(t, 0)
	wantFiles(t, d+"/vol")
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F32", Done: "volumes full, read-only and gone, at start and under a live connection", Count: 7,
		Outcome: "at start one line with ENOSPC, EROFS or ENOENT and the cure, exit 1; the live connection continues; a removed socket is recreated once there is room",
	})
}
