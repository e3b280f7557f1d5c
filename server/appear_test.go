package main_test

import (
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

// Engines that deny unshare(2) in containers leave package uds only the umask
// of the process; so the programs set that.
func TestF58ProgramsMakeTheirSocketFilesWithTheMode(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		program string
		args    []string
		umask   int // afterwards
	}{
		"server":           {"server", []string{"--mode", "0666", "--listen", "s", "--listen", "datagram:d", "--admin", "a"}, 0},
		"server, takeover": {"server", []string{"--mode", "0666", "--listen", "s", "--takeover"}, 0},
		"relay":            {"uds", []string{"forward", "--mode", "0666", "--listen", "s", "--connect", "none"}, 0},
		"no mode":          {"server", []string{"--listen", "s"}, 0o77},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			changes := testkit.WatchModes(t, d)
			p := start(t, d, append([]string{"sh", "-c", `umask 077; exec "$0" "$@"`, testkit.Program(tt.program)}, tt.args...)...)
			p.Err.Await(t, 1, "waiting for a connection")
			if names := changes(); names != nil {
				t.Errorf("files whose mode was set after they appeared: %q", names)
			}
			if umask := p.StatusNumber(t, "Umask"); umask != tt.umask {
				t.Errorf("the umask is %d, not %d", umask, tt.umask)
			}
			p.Stop(t)
		})
	}
}

// On such file systems (NFS with root_squash, 9p, bindfs) the owner of the
// server's own file is another user.
func TestF57StartOnAFileSystemThatShowsAnotherOwner(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to mount")
	need(t, "bindfs", "bindfs")
	testkit.NeedNamespace(t, "-mpf", "--mount-proc")
	d := dir(t)
	p := start(t, d, "unshare", "-mpf", "--kill-child", "--mount-proc", "sh", "-ec", `mkdir back front
		bindfs --force-user=nobody back front
		trap 'umount front' EXIT
		"$0" --log-level warn --mode 0666 --listen front/s --listen datagram:front/d --listen seqpacket:front/q & server=$!
		for a in stream:front/s seqpacket:front/q; do
			"$1" --retry 20s --log-level warn --connect "$a" hello; echo
		done
		kill -TERM $server
		wait $server
		ls -A front`, testkit.Program("server"), testkit.Program("client"))
	if status := p.Status(t); status != 0 || p.Out.String() != "hello\nhello\n" || p.Err.String() != "" {
		t.Errorf("exit status %d, output %q, error %q", status, &p.Out, &p.Err)
	}
}
