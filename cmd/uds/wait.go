//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

type waitCmd struct {
	Path    paths         `arg:"" name:"path..." help:"Each is a PATH, @NAME for an abstract name, or an address such as stream:PATH. They come before the flags."`
	Command []string      `arg:"" optional:"" passthrough:"" help:"After --, what to run in place of this process once all are served, with its arguments (default: end with exit status 0)."`
	Timeout time.Duration `default:"0s" placeholder:"DURATION" help:"The longest wait. Then the exit status is 1, and a line for each path says why it is not served, with the cure; 0s: no limit."`
	cli.RequireFlags
}

// Help ends the description in uds wait --help.
func (*waitCmd) Help() string {
	return `Examples:

	uds wait /run/db.sock --timeout 30s -- my-program
	uds wait /run/app.sock --timeout 2s            as a health check
	uds wait /run/app.sock --require-uid 10001     only if this user serves`
}

// paths are positional arguments that a flag or -- ends.
type paths []string

// Decode takes all that are there.
func (p *paths) Decode(ctx *kong.DecodeContext) error {
	for _, token := range ctx.Scan.PopWhile(kong.Token.IsValue) {
		path, err := pathOf(fmt.Sprint(token.Value))
		if err != nil {
			return err
		}
		*p = append(*p, path)
	}
	return nil
}

// Validate rejects values that make no sense.
func (c *waitCmd) Validate() error {
	switch {
	case c.Timeout < 0:
		return fmt.Errorf("--timeout %v: choose 0s for no limit, or more", c.Timeout)
	case len(c.Command) > 0 && c.Command[0] != "--" && strings.HasPrefix(c.Command[0], "-"):
		return fmt.Errorf("unknown flag %s; there are --timeout, --require-uid and --require-gid", c.Command[0])
	case len(c.Command) > 0 && c.Command[0] != "--":
		return fmt.Errorf("%s: the paths come before the flags, and a command after --", c.Command[0])
	case len(c.Command) == 1:
		return errors.New("no command comes after --; leave it out to end with exit status 0")
	}
	return nil
}

// Run waits, and becomes the command.
func (c *waitCmd) Run(ctx context.Context, std cli.Std) error {
	program := ""
	if len(c.Command) > 0 {
		var err error
		if program, err = exec.LookPath(c.Command[1]); err != nil {
			return err
		}
	}
	waiting, stop := ctx, context.CancelFunc(func() {})
	if c.Timeout > 0 {
		waiting, stop = context.WithTimeout(ctx, c.Timeout)
	}
	defer stop()
	var failed []error
	for _, path := range c.Path {
		if err := c.wait(waiting, path, std.Err); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", path, err))
		}
	}
	if ctx.Err() != nil { // also if all are served by now
		failed = append(failed, context.Cause(ctx))
	}
	if failed != nil {
		last := len(failed) - 1
		for _, err := range failed[:last] {
			fmt.Fprintf(std.Err, "uds: %s\n", logtext.Escape(err.Error()))
		}
		return failed[last]
	}
	if program == "" {
		return nil
	}
	// This program ignores SIGPIPE, and the command would; execve(2) gives a
	// signal that is handled its usual effect.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, c.Command[1:], os.Environ()))
}

func (c *waitCmd) accept() func(unix.Ucred) error {
	if c.RequireFlags == (cli.RequireFlags{}) {
		return nil
	}
	return c.CheckCred
}

// wait returns nil once a path is served, or at the end of ctx why it is not. A
// file that appears wakes it. listen(2) shows nowhere, nor do files that appear
// on another machine, so it looks again in any case, at growing intervals. After some
// seconds it tells once why it still waits.
func (c *waitCmd) wait(ctx context.Context, path string, out io.Writer) error {
	err := inspect.Served(path, c.accept())
	if err == nil {
		return nil
	}
	w, watchErr := newWatch(path)
	if watchErr != nil {
		return watchErr
	}
	defer func() { _ = w.Close() }()
	defer context.AfterFunc(ctx, func() { _ = w.SetReadDeadline(time.Unix(1, 0)) })()
	wait, silent := cli.NewBackOff(), time.After(3*time.Second) // longer than a health check
	for {
		w.follow() // before it looks, so that nothing is missed
		if err = inspect.Served(path, c.accept()); err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-silent:
			fmt.Fprintf(out, "uds: waiting for %s: %s\n", logtext.Escape(path), logtext.Escape(err.Error()))
		default:
		}
		if w.next(ctx, wait.NextBackOff()) {
			wait.Reset()
		}
	}
}

// A watch wakes up when something happens in the directory of a path.
type watch struct {
	*os.File
	path string
	id   int
}

func newWatch(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &watch{os.NewFile(uintptr(fd), "inotify"), path, -1}, nil
}

// follow watches the directory, or the nearest above it that is there.
func (w *watch) follow() {
	if sock.IsAbstract(w.path) {
		return
	}
	const events = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	fd := int(w.Fd())
	for dir := filepath.Dir(w.path); ; dir = filepath.Dir(dir) {
		id, err := unix.InotifyAddWatch(fd, dir, events|unix.IN_ONLYDIR)
		if err != nil && dir != filepath.Dir(dir) {
			continue
		}
		if w.id >= 0 && id != w.id {
			_, _ = unix.InotifyRmWatch(fd, uint32(w.id))
		}
		w.id = id
		return
	}
}

// next waits for an event, and returns whether there was one. The pause bounds
// how often a busy directory wakes it, and a server that has just bound its
// socket listens then.
func (w *watch) next(ctx context.Context, longest time.Duration) bool {
	const pause = 10 * time.Millisecond
	_ = w.SetReadDeadline(time.Now().Add(longest))
	if ctx.Err() != nil {
		return false
	}
	_, err := w.Read(make([]byte, 4096))
	if err == nil {
		time.Sleep(pause)
	}
	return err == nil
}
