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

// follow returns what to do at each look: redraw the table on a terminal,
// otherwise print what has changed.
func (c *lsCmd) follow(out io.Writer) func([]*inspect.Socket) error {
	if f, ok := out.(*os.File); ok && c.Format == "table" {
		if _, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			return func(sockets []*inspect.Socket) error { return redraw(f, string(c.text(sockets))) }
		}
	}
	var before changes
	return func(sockets []*inspect.Socket) error {
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

// changes has what was there at a look, by the numbers of the open sockets:
// the server's alone, or those of a connection.
type changes map[[2]uint32]change

// A change is a socket that has appeared or ended, without its connections; or
// with one, if it is the connection.
type change struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // appeared, ended
	inspect.Socket
}

func (c *lsCmd) changes(b *bytes.Buffer, before changes, sockets []*inspect.Socket) (now changes) {
	now = changes{}
	see := func(key [2]uint32, s *inspect.Socket, connections []inspect.Connection) {
		one := change{time.Now(), "appeared", *s}
		one.Connections = connections
		now[key] = one
		if _, ok := before[key]; !ok {
			c.change(b, one)
		}
		delete(before, key)
	}
	number := func(e *inspect.End) uint32 { return cmp.Or(e, &inspect.End{}).Inode }
	for _, s := range sockets {
		if s.Server != nil {
			see([2]uint32{number(s.Server)}, s, []inspect.Connection{})
		}
		for _, of := range s.Connections {
			see([2]uint32{number(of.Server), number(of.Client) + 1}, s, []inspect.Connection{of})
		}
	}
	for _, one := range before {
		one.Time, one.Event = time.Now(), "ended"
		c.change(b, one)
	}
	return now
}

func (c *lsCmd) change(b *bytes.Buffer, one change) {
	if c.Format == "json" {
		writeJSON(b, one)
		return
	}
	address, what := cmp.Or(one.Address, "(pair)"), servers(&one.Socket)
	for _, of := range one.Connections {
		what = "client " + summary(of.Client)
		if of.Server == nil {
			what += " (waits to be accepted)"
		}
	}
	fmt.Fprintf(b, "%s %s %s %s %s\n", one.Time.Format(time.TimeOnly), one.Event, one.Type, address, what)
}
