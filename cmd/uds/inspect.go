//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

type inspectCmd struct {
	Path   []string `arg:"" name:"path" help:"A PATH, @NAME for an abstract name, or an address such as stream:PATH."`
	Format string   `default:"table" enum:"table,json" placeholder:"FORMAT" help:"The output: table for people, or json, one object a line."`
}

// Help ends the description in uds inspect --help.
func (*inspectCmd) Help() string {
	return `Examples:

	uds inspect /run/app.sock
	sudo uds inspect /var/run/docker.sock
	uds inspect --format json /run/app.sock /run/db.sock`
}

// Validate takes the path out of an address, and rejects an invalid one.
func (c *inspectCmd) Validate() error {
	for i, s := range c.Path {
		var err error
		if c.Path[i], err = pathOf(s); err != nil {
			return err
		}
	}
	return nil
}

// pathOf returns the path of an argument, which may be an address.
func pathOf(s string) (string, error) {
	path := s
	form, rest, ok := strings.Cut(s, ":")
	switch t := addr.Type(form); {
	case ok && (t == addr.Stream || t == addr.Datagram || t == addr.Seqpacket || t == addr.Files):
		path = rest
	case ok && !t.Unix():
		return "", fmt.Errorf("%s is not a path; only Unix sockets have one; write ./%s for a file of that name", s, s)
	}
	if path == "" || path == "@" {
		return "", fmt.Errorf("%q: the path is empty; write PATH, @NAME or stream:PATH", s)
	}
	return path, nil
}

// Run inspects all paths, and continues after a path that it cannot inspect.
func (c *inspectCmd) Run(ctx context.Context, std cli.Std) error {
	var failed []string
	var of inspect.Collector
	all, _, _ := of.Sockets() // before it connects; what cannot be seen is left out
	for _, path := range c.Path {
		in, err := inspect.Path(path)
		if err != nil {
			failed = append(failed, err.Error())
		}
		if in == nil {
			continue
		}
		if s := in.See(all); s != nil {
			of.Name(ctx, []*inspect.Socket{s})
		}
		in.Path, in.Row, in.Process = logtext.Escape(in.Path), logtext.Escape(in.Row), logtext.Escape(in.Process)
		if err := c.write(std.Out, in); err != nil {
			return fmt.Errorf("write standard output: %w", err)
		}
	}
	if failed != nil {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

func (c *inspectCmd) write(w io.Writer, in *inspect.Result) error {
	if c.Format == "json" {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(in)
	}
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "  %-9s %s\n", name, value) }
	b.WriteString(cmp.Or(in.Row, in.Path) + "\n")
	what := in.Kind
	if in.Type != "" {
		what = fmt.Sprintf("%s %s", in.Type, in.Kind)
	}
	switch {
	case in.Kind == "symbolic link":
		what += ", whose target is missing"
	case strings.HasPrefix(in.Row, "l"):
		what += ", through a symbolic link"
	}
	if what != "" {
		line("type", what)
	}
	if in.State != "" {
		line("state", states[in.State])
	}
	if in.State == inspect.Live || in.State == inspect.Private {
		line("listener", listener(in))
		if in.Type == sock.Datagram {
			line("queue", queue(in))
		} else {
			line("backlog", backlog(in))
		}
		if in.Connections != nil {
			line(clients(in))
		}
	}
	if in.ReadOnly {
		line("mount", "read-only: the socket cannot be replaced through it, but clients can connect")
	}
	for _, why := range in.Why {
		line("why", logtext.Escape(why))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

var states = map[inspect.State]string{
	inspect.Live:    "live",
	inspect.Private: "live; connected, so it receives messages from its own peer only",
	inspect.Bound:   "bound, but no process listens: a client's own name, or a server that is about to start",
	inspect.Stale:   "stale: no process serves it",
	inspect.Unknown: "cannot tell: permission denied",
}

func listener(in *inspect.Result) string {
	if in.UID == nil {
		return "unknown: " + in.NotTold
	}
	who := "uid " + inspect.Named(*in.UID, inspect.UserName)
	switch {
	case in.PID != nil && *in.PID != 0:
		who += fmt.Sprintf(", gid %s, pid %d", inspect.Named(*in.GID, inspect.GroupName), *in.PID)
		if in.Process != "" {
			who += " (" + in.Process + ")"
		}
	case in.PID != nil:
		who += fmt.Sprintf(", gid %s, pid unknown, in another pid namespace", inspect.Named(*in.GID, inspect.GroupName))
	case in.Type == sock.Datagram:
		who += "; for datagram sockets, the kernel reports only the owner"
	default:
		who += "; the kernel reports more only to a connected client"
	}
	return who
}

func backlog(in *inspect.Result) string {
	switch {
	case in.Waiting == nil || in.Backlog == nil:
		return full(in) + "number of waiting connections unknown: " + in.NotTold
	case *in.Waiting > *in.Backlog:
		return fmt.Sprintf("full: %d of %d connections wait, the kernel admits one more", *in.Waiting, *in.Backlog)
	default:
		return fmt.Sprintf("%d of %d connections wait", *in.Waiting, *in.Backlog)
	}
}

// clients describes the connections of a socket that serves, or the one that an
// open socket is an end of.
func clients(in *inspect.Result) (name, value string) {
	var ends []*inspect.End
	for _, c := range in.Connections {
		ends = append(ends, c.Client)
	}
	switch {
	case len(ends) == 0:
		return "clients", "none seen"
	case in.State == inspect.Private && in.Kind == "open socket":
		return "between", summary(ends...) + " and " + summary(in.Connections[0].Server)
	default:
		return "clients", fmt.Sprintf("%d: %s", len(ends), summary(ends...))
	}
}

func queue(in *inspect.Result) string {
	switch {
	case in.NextBytes == nil:
		return full(in) + "waiting messages unknown: " + in.NotTold
	case *in.NextBytes > 0:
		return full(in) + fmt.Sprintf("the next message has %d bytes; the kernel does not report how many wait", *in.NextBytes)
	default:
		return full(in) + "nothing waits, or an empty message is next"
	}
}

func full(in *inspect.Result) string {
	switch {
	case in.Full == nil:
		return ""
	case *in.Full:
		return "full; "
	default:
		return "not full; "
	}
}
