package relay_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

// asUser runs a program as a user, in the group of the same number and others.
func asUser(t *testing.T, d string, uid uint32, groups []uint32, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	p := testkit.Prepare(t, d, args...)
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
	p.Start(t)
	return p.Status(t), p.Out.String(), p.Err.String()
}

func TestTargetSeesTheClientsUser(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "which may become the client's user")
	const serves, allowed, other, group = 20000, 20001, 20002, 20009
	for _, kind := range []string{"stream", "seqpacket"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			check(t, os.Chmod(d, 0o777))
			target := testkit.Prepare(t, d, "server", "--listen", kind+":s", "--mode", "0666", "--allow-uid", fmt.Sprint(allowed))
			target.Cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serves, Gid: serves}}
			target.Start(t)
			target.Err.Await(t, 1, "waiting for a ")
			relay := forward(t, d, kind+":as", kind+":s", "--mode", "0666", "--as-client", "--require-uid", fmt.Sprint(serves))
			forward(t, d, kind+":r", kind+":s", "--mode", "0666")
			try := func(uid uint32, to, want string, groups ...uint32) {
				t.Helper()
				if status, out, stderr := asUser(t, d, uid, groups, "client", "--log-level", "warn", "--connect", kind+":"+to, "hello"); (status == 0) != (want == "hello") || out != want {
					t.Errorf("user %d through %s: exit status %d, %q, %s", uid, to, status, out, stderr)
				}
			}
			try(allowed, "s", "hello")
			try(allowed, "as", "hello")
			target.Err.Await(t, 2, fmt.Sprintf("gid=%d ", allowed)) // a name may follow: SO_PASSCRED in unix(7)
			try(other, "as", "")
			target.Err.Await(t, 1, fmt.Sprintf("rejected a client: user %d, group %[1]d is not allowed", other))
			try(allowed, "r", "")
			target.Err.Await(t, 1, "rejected a client: user 0, group 0 is not allowed")

			// The file's permissions are the client's, too, with all its groups.
			check(t, os.Chown(d+"/s", serves, group))
			check(t, os.Chmod(d+"/s", 0o660))
			try(allowed, "as", "hello", group)
			groups := []uint32{group}
			for g := range uint32(40) {
				groups = append(groups, 30000+g)
			}
			try(allowed, "as", "hello", groups...)
			try(allowed, "as", "")
			relay.Err.Await(t, 1, "permission denied")

			// The threads of the clients end, and the others are still root.
			testkit.Await(t, func() error {
				threads, _ := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf("grep -h [UG]id: /proc/%d/task/*/status | cut -f 2- | sort -u", relay.Pid())).Output()
				if string(threads) != "0\t0\t0\t0\n" {
					return fmt.Errorf("users and groups of the threads are %q", threads)
				}
				return nil
			})
			relay.Terminate(t)
		})
	}
}

func TestAsClientWithoutRoot(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t, "to become another user")
	status, _, stderr := asUser(t, dir(t), 20001, nil, "uds", "forward", "--listen", "r", "--connect", "s", "--as-client")
	if status != 2 || !strings.Contains(stderr, "--as-client: only root can") {
		t.Errorf("exit status %d, %s", status, stderr)
	}
}

func TestPeerAuthenticationOfPostgreSQL(t *testing.T) {
	testkit.NeedRoot(t, "to become the user postgres")
	t.Parallel()
	need(t, "psql", "postgresql-client")
	need(t, "setpriv", "util-linux")
	programs, _ := exec.CommandContext(t.Context(), "sh", "-c", "ls -d /usr/lib/postgresql/*/bin").Output()
	if len(programs) == 0 {
		testkit.Missing(t, "PostgreSQL", "install the package postgresql")
	}
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	server := start(t, d, "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-ec", `PATH=$0:$PATH; mkdir run
		initdb -D data -U postgres -A peer -N >&2; exec postgres -D $PWD/data -k $PWD/run -c listen_addresses= -c fsync=off`, strings.TrimSpace(string(programs)))
	server.Err.Await(t, 1, "ready to accept connections")
	check(t, os.Mkdir(d+"/as", 0o755))
	check(t, os.Mkdir(d+"/r", 0o755))
	forward(t, d, "stream:as/.s.PGSQL.5432", "stream:run/.s.PGSQL.5432", "--mode", "0666", "--as-client")
	forward(t, d, "stream:r/.s.PGSQL.5432", "stream:run/.s.PGSQL.5432", "--mode", "0666")
	query := func(user, through string) (status int, stdout, stderr string) {
		t.Helper()
		return run(t, d, "", "setpriv", "--reuid="+user, "--regid="+user, "--clear-groups", "psql", "-h", d+"/"+through, "-U", "postgres", "-Atc", "SELECT 6*7")
	}
	if status, out, stderr := query("postgres", "as"); status != 0 || out != "42\n" {
		t.Errorf("psql printed %q, %s", out, stderr)
	}
	for _, refused := range [][2]string{{"postgres", "r"}, {"daemon", "as"}} {
		if status, out, stderr := query(refused[0], refused[1]); status == 0 || !strings.Contains(stderr, "Peer authentication failed") {
			t.Errorf("psql as %s through %s printed %q, %s", refused[0], refused[1], out, stderr)
		}
	}

	// A tap of the server's own socket keeps who is who by itself, and no client
	// that comes meanwhile fails.
	load := start(t, d, "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
		"sh", "-c", `while [ ! -e "$0" ]; do psql -h "$1" -U postgres -Atc "SELECT 6*7" || echo failed; done`, d+"/over", d+"/run")
	for i := range testkit.Count(3, 100) {
		tap := start(t, d, "uds", "tap", "run/.s.PGSQL.5432")
		tap.Err.Await(t, 1, "waiting for a ")
		load.Out.Await(t, 3*i+3, "42\n")
		if status, _, stderr := query("daemon", "run"); status == 0 || !strings.Contains(stderr, "Peer authentication failed") {
			t.Errorf("psql as daemon through a tap: %s", stderr)
		}
		tap.Out.Await(t, 1, "SELECT 6*7") // in the dump's last column
		tap.Signal(t, syscall.SIGTERM)
		tap.WantStatus(t, 0)
	}
	check(t, os.WriteFile(d+"/over", nil, 0o644))
	load.WantStatus(t, 0)
	if out := load.Out.String(); strings.Trim(out, "42\n") != "" {
		t.Errorf("clients failed: %s%s", out, &load.Err)
	}

	// At its end it removes its name, which is the tap's then.
	tap := start(t, d, "uds", "tap", "run/.s.PGSQL.5432")
	tap.Err.Await(t, 1, "waiting for a ")
	server.Signal(t, os.Interrupt)
	server.Status(t)
	tap.WantStatus(t, 1)
	testkit.WantFiles(t, d+"/run")
}

// D-Bus compares what its client writes, AUTH EXTERNAL and a user, with the
// credentials of the socket.
func TestExternalAuthenticationOfDBus(t *testing.T) {
	testkit.NeedRoot(t, "to become other users")
	t.Parallel()
	need(t, "dbus-daemon", "dbus-daemon")
	need(t, "busctl", "systemd")
	need(t, "setpriv", "util-linux")
	d := dir(t)
	check(t, os.Chmod(d, 0o777))
	check(t, os.WriteFile(d+"/bus.conf", fmt.Appendf(nil, `<busconfig><type>session</type><listen>unix:path=%s/bus</listen><auth>EXTERNAL</auth>
		<policy context="default"><deny user="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
		<policy context="mandatory"><allow user="daemon"/></policy></busconfig>`, d), 0o644))
	as := func(user string, args ...string) []string {
		return append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--clear-groups"}, args...)
	}
	bus := start(t, d, as("bin", "dbus-daemon", "--config-file=bus.conf", "--nofork", "--print-address")...)
	bus.Out.Await(t, 1, "unix:path=")
	forward(t, d, "stream:as", "stream:bus", "--mode", "0666", "--as-client")
	forward(t, d, "stream:r", "stream:bus", "--mode", "0666")
	const name = "org.freedesktop.DBus"
	for _, tt := range []struct {
		user, through string
		admitted      bool
	}{{"daemon", "bus", true}, {"daemon", "as", true}, {"daemon", "r", false}, {"games", "bus", false}, {"games", "as", false}, {"root", "as", false}} {
		status, out, stderr := run(t, d, "", as(tt.user, "busctl", "--address=unix:path="+d+"/"+tt.through, "call", name, "/", name, "ListNames")...)
		if (status == 0) != tt.admitted || strings.HasPrefix(out, `as 2 "`+name+`" ":1.`) != tt.admitted {
			t.Errorf("busctl as %s through %s: exit status %d, %q, %s", tt.user, tt.through, status, out, stderr)
		}
	}
	bus.Terminate(t)
}
