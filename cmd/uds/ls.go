//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/logtext"
)

type lsCmd struct {
	Path   []string `arg:"" optional:"" name:"path" help:"Show each connection of this socket: a PATH, an @NAME, or an open socket, /proc/PID/fd/N."`
	Format string   `default:"table" enum:"table,json,mermaid,dot" placeholder:"FORMAT" help:"The output: table for people; json, one object a socket; or a graph of who talks to whom, mermaid for Markdown, dot for Graphviz."`
	Pairs  bool     `help:"List pairs without an address too, socketpair(2)."`
	Watch  bool     `help:"Look again every second, and print what appears and ends; on a terminal, redraw the table."`
}

// Help ends the description in uds ls --help.
func (*lsCmd) Help() string {
	return `A process is shown as CONTAINER: NAME[PID] USER, a container of a Pod as NAMESPACE/POD/CONTAINER. An address is what the server has bound, in its own view of the files.

	sudo uds ls
	sudo uds ls /var/run/docker.sock
	sudo uds ls --format dot | dot -Tsvg >sockets.svg`
}

// Validate takes the path out of an address, and rejects a graph that moves.
func (c *lsCmd) Validate() error {
	for i, s := range c.Path {
		var err error
		if c.Path[i], err = pathOf(s); err != nil {
			return err
		}
	}
	if c.Watch && (c.Format == "mermaid" || c.Format == "dot") {
		return fmt.Errorf("--watch --format %s: only table and json can be followed", c.Format)
	}
	return nil
}

// period is the time between two looks.
const period = time.Second

// Run lists once, or until the context ends.
func (c *lsCmd) Run(ctx context.Context, std cli.Std) error {
	var of inspect.Collector
	all, unseen, err := of.Sockets()
	if err != nil {
		return err
	}
	screen := c.screen(std.Out)
	if text := unseen.String(); text != "" && screen == nil {
		fmt.Fprintf(std.Err, "uds: %s\n", text)
	}
	shown, missing, err := c.pick(all)
	if err != nil {
		return err
	}
	of.Name(ctx, shown)
	if c.Watch {
		follow := c.follow(std.Out, screen)
		for tick := time.NewTicker(period); err == nil; {
			if err = follow(shown, unseen); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if all, unseen, err = of.Sockets(); err == nil {
				shown, _, err = c.pick(all)
				of.Name(ctx, shown)
			}
		}
		return err
	}
	if err := write(std.Out, c.text(shown)); err != nil {
		return err
	}
	if missing != nil {
		return fmt.Errorf("no process is seen to serve %s; uds inspect %s shows why", strings.Join(missing, ", "), strings.Join(missing, " "))
	}
	return nil
}

func write(w io.Writer, text []byte) error {
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write standard output: %w", err)
	}
	return nil
}

// pick returns the sockets to show, and the arguments for which there is none.
func (c *lsCmd) pick(all []*inspect.Socket) (shown []*inspect.Socket, missing []string, err error) {
	for _, s := range all {
		if len(c.Path) == 0 && (c.Pairs || !s.Pair()) {
			shown = append(shown, s)
		}
	}
	for _, path := range c.Path {
		pick, err := inspect.At(path)
		if err != nil {
			return nil, nil, err
		}
		before := len(shown)
		for _, s := range all {
			if s = pick(s); s != nil {
				shown = append(shown, s)
			}
		}
		if len(shown) == before {
			missing = append(missing, logtext.Escape(path))
		}
	}
	return shown, missing, nil
}

func (c *lsCmd) text(sockets []*inspect.Socket) []byte {
	var b bytes.Buffer
	switch {
	case c.Format == "mermaid":
		mermaid.draw(&b, sockets)
	case c.Format == "dot":
		dot.draw(&b, sockets)
	case c.Format == "json":
		for _, s := range sockets {
			writeJSON(&b, s)
		}
	case len(c.Path) > 0:
		details(&b, sockets)
	default:
		table(&b, sockets)
	}
	return b.Bytes()
}

func writeJSON(b *bytes.Buffer, v any) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // nothing in it can fail
	}
}
