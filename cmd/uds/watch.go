//go:build linux

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/inspect"
)

// screen returns the terminal on which --watch draws the table, or nil.
func (c *lsCmd) screen(out io.Writer) *os.File {
	if f, ok := out.(*os.File); ok && c.Watch && c.Format == "table" {
		if _, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			return f
		}
	}
	return nil
}

// follow returns what to do at each look: redraw the table on a screen, with what
// was not seen above it, otherwise print what has changed.
func (c *lsCmd) follow(out io.Writer, screen *os.File) func([]*inspect.Socket, inspect.Unseen) error {
	if screen != nil {
		return func(sockets []*inspect.Socket, unseen inspect.Unseen) error {
			text := unseen.String()
			if text != "" {
				text += "\n"
			}
			return redraw(screen, text+string(c.text(sockets)))
		}
	}
	var before map[string]seen
	return func(sockets []*inspect.Socket, _ inspect.Unseen) error {
		var b bytes.Buffer
		before = c.changes(&b, before, sockets)
		return write(out, b.Bytes())
	}
}

// redraw fills the screen with the beginning of a text.
func redraw(screen *os.File, text string) error {
	size, err := unix.IoctlGetWinsize(int(screen.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return errors.New("the terminal is gone")
	}
	var b strings.Builder
	b.WriteString("\x1b[H") // to the top; \x1b[K clears the rest of the line, \x1b[J that of the screen
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for _, line := range lines[:min(len(lines), max(int(size.Row), 2)-1)] {
		letters := []rune(line)
		b.WriteString(string(letters[:min(len(letters), int(size.Col))]) + "\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	return write(screen, []byte(b.String()))
}

// A change is a socket that has appeared or ended, without its connections; or
// with the one that has.
type change struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // appeared, ended
	inspect.Socket
}

// A seen socket or connection, and the line that says so.
type seen struct {
	line   string
	socket inspect.Socket
}

// changes prints what is not the same as at the look before. The keys are the open
// sockets, not their processes: a child that a process starts has its descriptors
// for a moment.
func (c *lsCmd) changes(b *bytes.Buffer, before map[string]seen, sockets []*inspect.Socket) (now map[string]seen) {
	now = map[string]seen{}
	see := func(s inspect.Socket, what string, ends ...*inspect.End) {
		line, key := fmt.Sprintf("%s %s %s", s.Type, cmp.Or(s.Address, "(pair)"), what), s.Address
		for _, e := range ends {
			if e != nil {
				line += fmt.Sprintf(" %d", e.Inode)
				key += fmt.Sprintf(" %d", e.Inode)
			}
		}
		if len(s.Connections) > 0 {
			key += " connection"
		}
		if _, ok := before[key]; !ok {
			c.change(b, "appeared", line, s)
		}
		now[key] = seen{line, s}
		delete(before, key)
	}
	for _, s := range sockets {
		one := *s
		if one.Connections = []inspect.Connection{}; s.Server != nil {
			see(one, "server "+summary(s.Server), s.Server)
		}
		for _, of := range s.Connections {
			one.Connections = []inspect.Connection{of}
			what := "client " + summary(of.Client)
			if of.Server == nil {
				what += " (waits to be accepted)"
			}
			see(one, what, of.Client, of.Server)
		}
	}
	for _, s := range before {
		c.change(b, "ended", s.line, s.socket)
	}
	return now
}

func (c *lsCmd) change(b *bytes.Buffer, event, line string, s inspect.Socket) {
	now := time.Now()
	if c.Format == "json" {
		writeJSON(b, change{now, event, s})
		return
	}
	fmt.Fprintf(b, "%s %s %s\n", now.Format(time.TimeOnly), event, line)
}
