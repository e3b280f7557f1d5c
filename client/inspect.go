//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

type inspectCmd struct {
	Path   []string `arg:"" name:"path" help:"What to look at: a PATH, @NAME for an abstract one, or an address such as stream:PATH. It is connected to once, which a server sees as a client that says nothing."`
	Format string   `default:"table" enum:"table,json" placeholder:"FORMAT" help:"table for people, json for programs, one object a line (default: ${default})."`
}

// Validate takes the path out of an address, and turns away what is none.
func (c *inspectCmd) Validate() error {
	for i, s := range c.Path {
		form, path, ok := strings.Cut(s, ":")
		switch t := transport.Type(form); {
		case ok && (t == transport.Stream || t == transport.Datagram || t == transport.Seqpacket):
			c.Path[i] = path
		case ok && !t.Unix():
			return fmt.Errorf("%s is no path: only Unix sockets have one; write ./%s for a file of that name", s, s)
		}
		if c.Path[i] == "" || c.Path[i] == "@" {
			return fmt.Errorf("%q: the path is empty: write PATH, @NAME or stream:PATH", s)
		}
	}
	return nil
}

// An inspected path is what --format json writes; the keys are always there.
type inspected struct {
	Path string `json:"path"`
	Row  string `json:"row"` // "" for an abstract name
	*uds.Inspection
}

// Run looks at all paths, also after one that it cannot look at.
func (c *inspectCmd) Run(std cli.Std) error {
	var failed []string
	for _, path := range c.Path {
		// The row comes first: a server of one client, which the inspection is,
		// may be gone after it with its file.
		row, rowErr := "", error(nil)
		if path[0] != '@' {
			row, rowErr = lsRow(path)
		}
		in, err := uds.Inspect(path)
		if err == nil && rowErr != nil {
			in, err = nil, fmt.Errorf("inspect %s: %w", path, rowErr)
		}
		if err != nil {
			failed = append(failed, err.Error())
		}
		if in == nil {
			continue
		}
		x := inspected{transcript.Escape(path), transcript.Escape(row), in}
		x.Process = transcript.Escape(x.Process)
		write := x.writeTable
		if c.Format == "json" {
			write = x.writeJSON
		}
		if err := write(std.Out); err != nil {
			return fmt.Errorf("write standard output: %w", err)
		}
	}
	if failed != nil {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

func (x inspected) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(x)
}

func (x inspected) writeTable(w io.Writer) error {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "  %-9s %s\n", name, value) }
	b.WriteString(x.Row)
	if x.Row == "" {
		b.WriteString(x.Path)
	}
	b.WriteString("\n")
	what := x.Kind
	if x.Type != "" {
		what = fmt.Sprintf("%s %s", x.Type, x.Kind)
	}
	switch {
	case x.Kind == "symbolic link":
		what += " that leads to nothing"
	case strings.HasPrefix(x.Row, "l"):
		what += ", through a symbolic link"
	}
	line("type", what)
	if x.State != "" {
		line("state", states[x.State])
	}
	if x.State == uds.Live || x.State == uds.Private {
		line("listener", x.listener())
		if x.Type == transport.Datagram {
			line("queue", x.queue())
		} else {
			line("backlog", x.backlog())
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

var states = map[uds.State]string{
	uds.Live:    "live",
	uds.Private: "live; connected, so it takes messages from its own peer only",
	uds.Bound:   "bound, and nobody listens: a client's own name, or a server that is about to start",
	uds.Stale:   "stale: nobody serves it",
	uds.Unknown: "cannot tell: permission denied",
}

func (x inspected) listener() string {
	if x.UID == nil {
		return "not told: " + x.NotTold
	}
	who := "uid " + named(*x.UID, userName)
	switch {
	case x.PID != nil && *x.PID != 0:
		who += fmt.Sprintf(", gid %s, pid %d", named(*x.GID, groupName), *x.PID)
		if x.Process != "" {
			who += " (" + x.Process + ")"
		}
	case x.PID != nil:
		who += fmt.Sprintf(", gid %s, pid unknown, of another pid namespace", named(*x.GID, groupName))
	case x.Type == transport.Datagram:
		who += "; of a datagram socket the kernel does not tell more"
	default:
		who += "; only who gets connected is told more"
	}
	return who
}

func (x inspected) backlog() string {
	switch {
	case x.Waiting == nil || x.Backlog == nil:
		return x.full() + "how many wait is not told: " + x.NotTold
	case *x.Waiting > *x.Backlog:
		return fmt.Sprintf("full: %d of %d connections wait, the kernel lets one more in", *x.Waiting, *x.Backlog)
	default:
		return fmt.Sprintf("%d of %d connections wait", *x.Waiting, *x.Backlog)
	}
}

func (x inspected) queue() string {
	switch {
	case x.NextBytes == nil:
		return x.full() + "what waits is not told: " + x.NotTold
	case *x.NextBytes > 0:
		return x.full() + fmt.Sprintf("the next message has %d bytes; how many wait the kernel does not tell", *x.NextBytes)
	default:
		return x.full() + "nothing waits, or an empty message is next"
	}
}

func (x inspected) full() string {
	switch {
	case x.Full == nil:
		return ""
	case *x.Full:
		return "full; "
	default:
		return "not full; "
	}
}

// lsRow is the path's row as `LC_ALL=C ls -ld` of the GNU coreutils prints it.
func lsRow(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	size := strconv.FormatInt(st.Size, 10)
	target := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		size = fmt.Sprintf("%d, %d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		target = " -> " + to
	}
	return fmt.Sprintf("%s%s %d %s %s %s %s %s%s", lsMode(st.Mode), lsMore(path), st.Nlink,
		userName(st.Uid), groupName(st.Gid), size, lsTime(time.Unix(st.Mtim.Unix()), time.Now()), path, target), nil
}

// lsMode is the type's letter and the permissions. fs.FileMode's String is
// another one: it writes S, not s, for a socket.
func lsMode(mode uint32) string {
	letters := map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFSOCK: 's', unix.S_IFIFO: 'p',
	}
	b := []byte("?rwxrwxrwx")
	b[0] = letters[mode&unix.S_IFMT]
	for i := range 9 {
		if mode&(0o400>>i) == 0 {
			b[i+1] = '-'
		}
	}
	// Set-user-id, set-group-id and sticky bit stand where the x would.
	for i, letter := range []byte("sst") {
		if mode&(0o4000>>i) == 0 {
			continue
		}
		if x := &b[3*i+3]; *x == 'x' {
			*x = letter
		} else {
			*x = letter - 'a' + 'A'
		}
	}
	return string(b)
}

// lsMore is + where an access control list says more than the mode, else . with
// a security context.
func lsMore(path string) string {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return ""
	}
	names := strings.Split(string(list[:n]), "\x00")
	switch {
	case slices.Contains(names, "system.posix_acl_access") || slices.Contains(names, "system.posix_acl_default"):
		return "+"
	case slices.Contains(names, "security.selinux"):
		return "."
	default:
		return ""
	}
}

// lsTime has the hour of what is of the last half year, the year of the rest.
func lsTime(t, now time.Time) string {
	const halfAYear = 31556952 / 2 * time.Second
	if t.After(now.Add(-halfAYear)) && t.Before(now) {
		return t.Format("Jan _2 15:04")
	}
	return t.Format("Jan _2  2006")
}

func userName(id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	if u, err := user.LookupId(n); err == nil {
		return u.Username
	}
	return n
}

func groupName(id uint32) string {
	n := strconv.FormatUint(uint64(id), 10)
	if g, err := user.LookupGroupId(n); err == nil {
		return g.Name
	}
	return n
}

// named is a number with its name, where it has one.
func named(id uint32, name func(uint32) string) string {
	n := strconv.FormatUint(uint64(id), 10)
	if s := name(id); s != n {
		n += " (" + s + ")"
	}
	return n
}
