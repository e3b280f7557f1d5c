//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// autoName matches the names that sock.AutoName makes.
var autoName = regexp.MustCompile(`^client\..{1,12}\.[0-9]+\.[a-z2-7]{8}$`)

// ownDir returns the directory of the relay's own names; "" if they are no
// files.
func (c *forwardCmd) ownDir() string {
	name := cli.OwnName(c.Bind, c.Connect)
	if name == "" || name[0] == '@' {
		return ""
	}
	return filepath.Dir(name)
}

// removeStale removes the names that a killed relay has left behind, and
// nothing else: sockets of this user, with such a name, that no process has open.
func (c *forwardCmd) removeStale(log zerolog.Logger) {
	dir := c.ownDir()
	if dir == "" {
		return
	}
	entries, _ := os.ReadDir(dir) // the target may be late, and makes its directory
	removed := 0
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if autoName.MatchString(e.Name()) && unix.Lstat(path, &st) == nil && int(st.Uid) == os.Geteuid() &&
			sock.Stale(path) && unix.Unlink(path) == nil {
			removed++
		}
	}
	if removed > 0 {
		log.Info().Int("removed", removed).Msg("removed names that a killed relay or client has left in " + logtext.Escape(dir))
	}
}

// explainBind names the cure if the relay may not make its own names.
func (c *forwardCmd) explainBind(err error) error {
	dir := c.ownDir()
	if dir == "" || !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EROFS) {
		return err
	}
	if unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil {
		return err // it is about the target
	}
	return fmt.Errorf("%w; --bind DIR/ makes the relay's own names in another directory, where the target has to find them, and --bind none makes none, if the target need not answer", err)
}
