package integration

import (
	"context"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// newSmallVolume creates a volume in memory that can be filled: 1 MiB and 32
// inodes. It exists while a container uses it.
func newSmallVolume(t *testing.T) string {
	t.Helper()
	v, err := engine.VolumeCreate(t.Context(), volume.CreateOptions{Labels: labels(), DriverOpts: map[string]string{
		"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nr_inodes=32,uid=10001,gid=10000,mode=2770",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.VolumeRemove(context.Background(), v.Name, true); err != nil {
			t.Error(err)
		}
	})
	return v.Name
}

// wantRefusal starts a server that must fail with the reason in one line.
func wantRefusal(t *testing.T, volume, want string, opts ...testcontainers.ContainerCustomizer) {
	t.Helper()
	b := start(t, serverImage, volume, append(opts, testcontainers.WithWaitStrategy(wait.ForExit()))...)
	out, events := b.output(t)
	if code := b.exitCode(t); code != 1 || out != "" || strings.Count(events, "\n") != 1 || !strings.Contains(events, want) {
		t.Errorf("exit %d, output %q, want 1, none and one line with %s:\n%s", code, out, want, events)
	}
}

// fill leaves no free byte, and then no free inode.
const (
	fillBytes  = `! dd if=/dev/zero of=/run/uds/zeros bs=4096 2>&-`
	fillInodes = `i=0; while (: >/run/uds/f$i) 2>&-; do i=$((i + 1)); done`
)

func TestFullVolumeKeepsServerFromStarting(t *testing.T) {
	t.Parallel()
	volume := newSmallVolume(t)
	holder := start(t, serverImage, volume, shell(fillBytes+"; echo filled; exec sleep 600"),
		testcontainers.WithWaitStrategy(wait.ForLog("filled")))
	// A socket uses no bytes.
	server := startServer(t, volume)
	if out, events := runClient(t, volume, nil).output(t); out != message {
		t.Errorf("where no byte is left: got %q\n%s", out, events)
	}
	server.signal(t, "TERM")
	if code := server.awaitExit(t); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
	holder.exec(t, "sh", "-euc", fillInodes)
	wantRefusal(t, volume, "(ENOSPC)")
}

func TestFullVolumeDoesNotDisturbConnectedClients(t *testing.T) {
	t.Parallel()
	volume := newSmallVolume(t)
	server := startQuietServer(t, volume)
	tr := startTransfer(t, volume, nil)
	server.exec(t, "sh", "-euc", fillBytes+"\n"+fillInodes)
	tr.goesOn(t)
	if out, events := runClient(t, volume, nil).output(t); out != message {
		t.Errorf("a new client: got %q\n%s", out, events)
	}
	own := runClient(t, volume, []string{"--bind", "auto", "--log-level", "warn"})
	if _, events := own.output(t); own.exitCode(t) != 1 || strings.Count(events, "\n") != 1 || !strings.Contains(events, "(ENOSPC)") {
		t.Errorf("a client with a name: exit %d, want 1 and one line with ENOSPC:\n%s", own.exitCode(t), events)
	}
	if events := tr.end(t); events != "" {
		t.Errorf("the client wrote:\n%s", events)
	}
}

func TestReadOnlyVolumeKeepsServerFromStarting(t *testing.T) {
	t.Parallel()
	wantRefusal(t, newVolume(t), "(EROFS)", readOnly)
}

func TestVolumeThatBecomesReadOnlyDoesNotDisturbConnectedClients(t *testing.T) {
	t.Parallel()
	volume := newSmallVolume(t)
	server := startQuietServer(t, volume)
	tr := startTransfer(t, volume, nil)
	remount := start(t, serverImage, volume, shell("mount -o remount,ro /run/uds"), withUser("0"),
		withHost(func(h *container.HostConfig) {
			h.CapAdd, h.SecurityOpt = []string{"SYS_ADMIN"}, []string{"apparmor=unconfined"}
		}),
		testcontainers.WithWaitStrategy(wait.ForExit()))
	if code := remount.exitCode(t); code != 0 {
		_, events := remount.output(t)
		t.Fatalf("remount: exit %d\n%s", code, events)
	}
	tr.goesOn(t)
	if out, events := runClient(t, volume, nil).output(t); out != message {
		t.Errorf("a new client: got %q\n%s", out, events)
	}
	if events := tr.end(t); events != "" {
		t.Errorf("the client wrote:\n%s", events)
	}
	server.signal(t, "TERM")
	if code := server.awaitExit(t); code != 0 {
		_, events := server.output(t)
		t.Errorf("exit %d, want 0\n%s", code, events)
	}
}

func TestDirectoryThatIsGone(t *testing.T) {
	t.Parallel()
	volume := newVolume(t)
	address := on("stream:/run/uds/d/s")
	wantRefusal(t, volume, "(ENOENT)", address)

	server := startQuietServer(t, volume, address, shell("mkdir d; exec server"))
	tr := startTransfer(t, volume, nil, address)
	server.exec(t, "rm", "-r", "/run/uds/d")
	await(t, "the server to notice", func() bool {
		_, events := server.output(t)
		return strings.Contains(events, "/run/uds/d/s was removed, and cannot be recreated now: ") && strings.Contains(events, "(ENOENT)")
	})
	tr.goesOn(t)
	server.exec(t, "mkdir", "/run/uds/d")
	await(t, "the server to listen again", func() bool {
		_, events := server.output(t)
		return strings.Contains(events, "/run/uds/d/s was removed: listening again\n")
	})
	if out, events := runClient(t, volume, nil, address).output(t); out != message {
		t.Errorf("a new client: got %q\n%s", out, events)
	}
	if events := tr.end(t); events != "" {
		t.Errorf("the client wrote:\n%s", events)
	}
}
