//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/bench"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/uds/sock"
)

type benchCmd struct {
	Connect     []addr.Addr   `default:"stream:./uds_socket" placeholder:"ADDR" help:"The servers to measure side by side, as for echo."`
	Names       []string      `placeholder:"NAME" help:"What tables and charts call these addresses, in their order (default: the addresses)."`
	Size        []int         `default:"64" placeholder:"BYTES" help:"Sizes of a message; each with each number of connections."`
	Connections []int         `default:"1" placeholder:"N" help:"Numbers of connections."`
	Window      int           `default:"1" placeholder:"N" help:"Messages in flight on each connection."`
	Rate        float64       `default:"0" placeholder:"N" help:"Messages a second in all, in an open loop; 0: as fast as the echoes arrive."`
	Duration    time.Duration `default:"1s" placeholder:"DURATION" help:"Measured time, for each address in each round."`
	Warmup      time.Duration `default:"200ms" placeholder:"DURATION" help:"Time before the measured time."`
	Rounds      int           `default:"5" placeholder:"N" help:"Number of rounds; each measures all addresses in turn, in an order that rotates."`
	Baseline    int           `default:"1" placeholder:"N" help:"Ratios compare with the fastest of the first N addresses in the round."`
	Spin        time.Duration `default:"100us" placeholder:"DURATION" help:"How long the client polls before it sleeps."`
	Bind        string        `placeholder:"DIR/" help:"Directory in which datagram clients bind their names (default: beside the server's socket)."`
	Retry       time.Duration `default:"0s" placeholder:"DURATION" help:"Keep trying for this long if there is no server yet."`
	JSON        string        `name:"json" placeholder:"FILE" help:"Write the same numbers as JSON to this file; with -, to standard output instead of the table."`
}

// Validate rejects values that make no sense.
func (c *benchCmd) Validate() error {
	for _, s := range c.Size {
		if s < 1 || s > 16<<20 {
			return fmt.Errorf("--size %d: choose from 1 to %d bytes", s, 16<<20)
		}
	}
	for _, n := range c.Connections {
		if n < 1 || n > 100_000 {
			return fmt.Errorf("--connections %d: choose from 1 to 100000", n)
		}
	}
	for _, a := range c.Connect {
		if a.Type == addr.Files {
			return fmt.Errorf("--connect %s: this address takes files and echoes nothing; leave it out", a)
		}
	}
	switch {
	case len(c.Names) > len(c.Connect):
		return fmt.Errorf("--names: %d names for %d addresses", len(c.Names), len(c.Connect))
	case len(c.Connect) == 0:
		return errors.New("--connect: no address; write stream:PATH")
	case c.Window < 1 || c.Window > 10_000:
		return fmt.Errorf("--window %d: choose from 1 to 10000 messages", c.Window)
	case c.Rate < 0:
		return fmt.Errorf("--rate %v: choose 0 or more", c.Rate)
	case c.Duration <= 0 || c.Warmup < 0:
		return errors.New("--duration, --warmup: choose more than 0s, and 0s or more")
	case c.Rounds < 1 || c.Rounds > 1000:
		return fmt.Errorf("--rounds %d: choose from 1 to 1000", c.Rounds)
	case c.Baseline < 1 || c.Baseline > len(c.Connect):
		return fmt.Errorf("--baseline %d: choose from 1 to %d, the number of addresses", c.Baseline, len(c.Connect))
	case c.Spin < 0 || c.Spin > time.Second:
		return fmt.Errorf("--spin %v: choose from 0s to 1s", c.Spin)
	}
	return nil
}

// Run measures and reports.
func (c *benchCmd) Run(ctx context.Context, std cli.Std) error {
	open := func(ctx context.Context, a addr.Addr) (*sock.Conn, error) {
		return cli.Dial(ctx, a, c.dialConfig(a), c.Retry)
	}
	config := bench.Config{
		Addrs: c.Connect, Names: c.Names, Dial: open, Sizes: c.Size, Connections: c.Connections, Window: c.Window, Rate: c.Rate,
		Warmup: c.Warmup, Duration: c.Duration, Rounds: c.Rounds, Baseline: c.Baseline, Spin: c.Spin,
	}
	if cli.IsTerminal(std.Err) {
		config.Progress = func(what string) { fmt.Fprintf(std.Err, "\r\x1b[K%s", what) }
	}
	result, err := config.Run(ctx)
	if config.Progress != nil {
		fmt.Fprint(std.Err, "\r\x1b[K")
	}
	if err != nil {
		return err
	}
	if c.JSON == "-" {
		err = result.WriteJSON(std.Out)
	} else if err = result.WriteTable(std.Out); err == nil && c.JSON != "" {
		err = bench.WriteFile(c.JSON, result.WriteJSON)
	}
	for _, row := range result.Rows {
		if err == nil && row.Rate == 0 && row.FirstError != "" {
			err = fmt.Errorf("bench %s: no message was echoed: %s", row.Name, row.FirstError)
		}
	}
	return err
}

func (c *benchCmd) dialConfig(a addr.Addr) (config sock.DialConfig) {
	for _, size := range c.Size {
		if a.Type.Messages() && a.Type.Unix() {
			config.SendBuffer = max(config.SendBuffer, size+1024)
		}
	}
	if a.Type != addr.Datagram {
		return config
	}
	bind := "auto"
	if c.Bind != "" && !a.Abstract() {
		bind = strings.TrimSuffix(c.Bind, "/") + "/"
	}
	config.Bind = cli.OwnName(bind, a)
	return config
}
