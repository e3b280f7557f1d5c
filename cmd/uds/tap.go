//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/relay"
	"github.com/udsecho/udsecho/internal/relay/record"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/why"
)

type tapCmd struct {
	Path     string `arg:"" name:"path" help:"The socket's PATH, or an address such as stream:PATH."`
	Show     string `default:"hex" placeholder:"FORM" help:"Show the data: hex or json on standard output, or a capture for Wireshark in a new FILE.pcapng."`
	ShowPort uint16 `placeholder:"PORT" help:"The server's port in a capture, by which Wireshark chooses the protocol: 5432 for PostgreSQL, for example (default: 80)."`
	Undo     bool   `help:"Give the name back that a killed tap has left, and end."`
	cli.LogFlags
}

// Help ends the description in uds tap --help.
func (*tapCmd) Help() string {
	return `Examples:

	uds tap /run/app.sock
	uds tap /run/app.sock --show json | jq .
	sudo uds tap /var/run/postgresql/.s.PGSQL.5432 --show new.pcapng --show-port 5432`
}

// Validate takes the path out of an address, and rejects invalid flags.
func (c *tapCmd) Validate(ctx *kong.Context) (err error) {
	if !slices.ContainsFunc(ctx.Path, func(p *kong.Path) bool { return p.Positional != nil }) {
		return nil // kong reports that the path is missing
	}
	if c.Path, err = pathOf(c.Path); err != nil {
		return err
	}
	if c.ShowPort != 0 && !strings.HasSuffix(c.Show, ".pcapng") {
		return fmt.Errorf("--show-port %d: only a capture has ports; write --show FILE.pcapng", c.ShowPort)
	}
	return record.Check(c.Show)
}

// Run passes new clients on until a signal, or until there is nothing to tap any
// more.
func (c *tapCmd) Run(ctx context.Context, std cli.Std) error {
	log, lines := c.LoopLogger(std.Err, "")
	defer lines.Flush()
	p, err := findPlace(c.Path)
	if err != nil {
		return fmt.Errorf("tap %s: %w", c.Path, err)
	}
	defer p.close()
	done, err := p.undo()
	switch {
	case err != nil:
	case c.Undo:
		(&forwardCmd{Connect: addr.Addr{Type: addr.Datagram, Path: p.path()}}).removeStale(log)
		if _, gone := p.inode(p.path()); done == "" && gone != nil {
			err = fmt.Errorf("%w: nothing was to be undone; look for a mistake in the path", gone)
		} else {
			log.Info().Msgf("tap: %s: %s", logtext.Escape(c.Path), cmp.Or(done, "nothing was to be undone"))
		}
	default:
		if done != "" {
			log.Warn().Msgf("tap: after another one was killed at %s: %s", logtext.Escape(c.Path), done)
		}
		err = c.tap(ctx, std, log, p)
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", c.Path, err)
	}
	return nil
}

func (c *tapCmd) tap(ctx context.Context, std cli.Std, log zerolog.Logger, p *place) error {
	t, before, err := newTap(p)
	if err != nil {
		return err
	}
	defer t.close()
	const day = 24 * time.Hour
	f := &forwardCmd{
		Connect: t.target, PassFiles: true, AsClient: os.Geteuid() == 0 && t.target.Type.Connects(),
		Show: c.Show, ShowPort: c.ShowPort, LimitFlags: server.LimitFlags{MaxPerUser: new(int), DrainTimeout: day}, name: c.Path,
	}
	sockets := []*addr.Socket{{Addr: addr.Addr{Type: t.target.Type, Path: c.Path}, Bound: t}}
	if t.target.Type == addr.Datagram {
		f.Bind = cmp.Or(p.at, "./") // beside the server's name, which the target's path is not
		f.removeStale(log)
	}
	s, r, err := f.relay(std, log, sockets)
	if err != nil {
		return err
	}
	if err := t.guard(c.Path); err != nil {
		return err
	}
	if err := p.exchange(t.inode, &t.file); err != nil {
		return err
	}
	log.Info().Msgf("tap: %s is shown until Ctrl-C; %sconnections that were open before are not seen", logtext.Escape(c.Path), before)
	if !f.AsClient && t.file.Mode&0o022 != 0 {
		log.Warn().Msgf("tap: the server sees all clients as user %d, the tap's; if it tells users apart, run the tap as root, or over datagrams not at all", os.Geteuid())
	}
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() {
		defer stop()
		early := t.watch(ctx, serve, c.Path, f.recorder.Failed())
		ended <- cmp.Or(t.giveBack(), early)
		// A client that has looked up the name just before connects now.
		time.Sleep(grace)
	}()
	err = s.Serve(serve, f.services(r, sockets)...)
	stop()
	return errors.Join(err, <-ended)
}

const (
	grace     = 50 * time.Millisecond
	lookEvery = 100 * time.Millisecond
)

// A tap is the relay's socket, which takes the place of the real one.
type tap struct {
	*sock.Socket
	place   *place
	inode   uint64         // of its file
	real    *os.File       // the real socket's file, O_PATH
	file    unix.Stat_t    // of that
	target  addr.Addr      // leads to that file under any name, and fits sun_path
	alarm   io.WriteCloser // tells the guard that the name was given back, or by its end that this process has died
	guarded chan error     // has the end of the guard
	once    sync.Once      // of giveBack
	failed  error          // of giveBack
}

// newTap makes a socket that looks like the real one, beside it. before is the
// number of connections that are open, and a space, if the kernel tells.
func newTap(p *place) (t *tap, before string, err error) {
	t = &tap{place: p}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.real, t.file, err = look(p.path()); err != nil {
		return t, "", sock.Explain(p.path(), err)
	}
	if err := p.check(t.real, &t.file); err != nil {
		return t, "", err
	}
	before = openBefore(int(t.real.Fd()))
	path := fmt.Sprintf("/proc/self/fd/%d", t.real.Fd())
	conn := -1 // to the server, as whom this process is to listen
	kind, err := sock.Probe(path, func(_ sock.Type, fd int) (err error) {
		conn, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl", err)
	})
	if conn >= 0 {
		defer func() { _ = unix.Close(conn) }()
	}
	if err == sock.ErrBound {
		err = unix.ECONNREFUSED
	}
	if err != nil && err != unix.EAGAIN { // its backlog is full
		return t, "", sock.Explain(p.path(), err)
	}
	t.target = addr.Addr{Type: addr.Type(kind), Path: path}
	if t.Socket, err = p.claim(kind); err != nil {
		return t, "", err
	}
	own, st, err := look(t.Addr().Path)
	if own != nil {
		defer func() { _ = own.Close() }()
	}
	if err != nil || !t.Socket.Is(&st) {
		return t, "", errors.Join(fmt.Errorf("%s was replaced while it was made; do not let other users write to its directory", t.Addr().Path), err)
	}
	t.inode = st.Ino
	if err := copyAttributes(own, t.real, &t.file); err != nil {
		return t, "", err
	}
	if err := unix.Rename(t.Addr().Path, p.aside(t.inode)); err != nil {
		return t, "", os.NewSyscallError("rename", err)
	}
	if os.Geteuid() == 0 && conn >= 0 && kind != sock.Datagram {
		var listenErr error
		err := relay.As(conn, func() { listenErr = unix.Listen(t.FD(), unix.SOMAXCONN) })
		if err = errors.Join(err, listenErr); err != nil {
			return t, "", fmt.Errorf("listen as the server's user: %w", err)
		}
	}
	return t, before, nil
}

// openBefore returns how many connections are open to a socket, and a space; "" if
// the kernel does not report the socket, as it is of another network namespace.
func openBefore(fd int) string {
	all, _ := why.Sockets()
	is, n, listens := why.IsFile(fd), 0, false
	for _, s := range all {
		switch {
		case !is(s):
		case s.State == why.Established:
			n++
		case s.State == why.Listening:
			listens = true
		}
	}
	if !listens {
		return ""
	}
	return fmt.Sprint(n, " ")
}

// guard starts the process that gives the name back if this one is killed. It has
// a session of its own, so that no terminal's and no group's signal reaches both.
func (t *tap) guard(shown string) error {
	// Through the directory that is open, as the path may be relative.
	cmd := exec.Command("/proc/self/exe", "tap-guard", "/proc/self/fd/3/"+t.place.name, shown)
	cmd.Stderr, cmd.ExtraFiles, cmd.SysProcAttr = os.Stderr, []*os.File{t.place.dir}, &syscall.SysProcAttr{Setsid: true}
	alarm, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start the guard: %w", err)
	}
	t.alarm, t.guarded = alarm, make(chan error, 1)
	go func() { t.guarded <- cmd.Wait() }()
	return nil
}

// watch returns nil at the end of ctx or serve, or why the tap has to end before.
func (t *tap) watch(ctx, serve context.Context, shown string, unwritten <-chan error) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-serve.Done():
			return nil
		case err := <-unwritten:
			return fmt.Errorf("what passes cannot be shown: %w", err)
		case err := <-t.guarded:
			t.guarded <- err
			return fmt.Errorf("the guard, which would give the name back if this process was killed, has ended: %w", cmp.Or(err, errors.New("exit status 0")))
		case <-look.C:
		}
		now, err := t.place.inode(t.place.path())
		switch {
		case err != nil || now != t.inode:
			return fmt.Errorf("%s was taken or removed, as by a server that starts or ends", shown)
		case !sock.IsOpen(t.target.Path, t.target.Sock().Type):
			return errors.New("the server has ended")
		}
	}
}

// giveBack gives the name back, then the place to other taps, and ends the guard.
// If the real socket is not where the tap has put it, its server has taken the
// name back.
func (t *tap) giveBack() error {
	t.once.Do(func() {
		if t.inode != 0 {
			if _, err := t.place.giveBack(t.inode, true); err != nil && err != unix.ENOENT {
				t.failed = fmt.Errorf("the name was not given back: %w; uds tap --undo does it", err)
			}
		}
		if t.Socket != nil {
			t.Socket.Unlink()
		}
		if t.guarded != nil { // last, so that it does what a second signal prevents
			_, _ = t.alarm.Write([]byte{0})
			_ = t.alarm.Close()
			t.guarded <- <-t.guarded
		}
	})
	return t.failed
}

// Unlink is what the server calls before it accepts the last clients; the name
// was given back before.
func (t *tap) Unlink() { _ = t.giveBack() }

// Lost is for a server that would make its file again.
func (t *tap) Lost() bool { return false }

// Is reports whether the file is the tap's own socket, whatever its name.
func (t *tap) Is(st *unix.Stat_t) bool { return st.Ino == t.inode && st.Dev == t.file.Dev }

func (t *tap) close() {
	_ = t.giveBack()
	if t.Socket != nil {
		_ = t.Close()
	}
	if t.real != nil {
		_ = t.real.Close()
	}
}

type tapGuardCmd struct {
	Path  string `arg:""`
	Shown string `arg:""`
}

// Run waits until the tap has ended, and gives the name back that it has not
// given back itself.
func (c *tapGuardCmd) Run(std cli.Std) error {
	if n, _ := io.Copy(io.Discard, std.In); n > 0 {
		return nil // it has
	}
	p, err := findPlace(c.Path)
	if err != nil {
		return err
	}
	defer p.close()
	const patience, pause = 100, 10 * time.Millisecond
	for range patience {
		var done string
		if done, err = p.undo(); err == nil {
			fmt.Fprintf(std.Err, "uds: the tap of %s was killed: %s\n", logtext.Escape(c.Shown), done)
			return nil
		}
		if !errors.Is(err, sock.ErrInUse) { // the dead tap's lock goes with its last descriptor
			break
		}
		time.Sleep(pause)
	}
	return fmt.Errorf("the tap of %s was killed, and its name was not given back: %w; uds tap --undo does it", c.Shown, err)
}
