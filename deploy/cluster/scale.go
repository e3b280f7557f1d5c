package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/udsecho/udsecho/internal/bench"
	"github.com/udsecho/udsecho/internal/cli"
)

type scaleCmd struct {
	Nodes int    `default:"3" placeholder:"N" help:"The most nodes (default: ${default})."`
	JSON  string `name:"json" placeholder:"FILE" help:"Write what was measured to this file; with --draw read it."`
	Plot  string `placeholder:"FILE" help:"Draw it and the model, to a file .png."`
	Draw  bool   `help:"Measure nothing, draw what --json has; this needs no root."`
}

// Validate turns away what makes no sense.
func (c *scaleCmd) Validate() error {
	if c.Nodes < 1 || c.Nodes > 20 {
		return fmt.Errorf("--nodes %d: choose from 1 to 20", c.Nodes)
	}
	if ext := filepath.Ext(c.Plot); c.Plot != "" && ext != ".png" {
		return fmt.Errorf("--plot %s: unknown format %q: name a file .png", c.Plot, ext)
	}
	if c.Draw && (c.JSON == "" || c.Plot == "") {
		return errors.New("--draw: name the file of measurements with --json, and the picture with --plot")
	}
	return nil
}

// A measurement is one cluster. Times are in seconds, sizes in bytes.
type measurement struct {
	Nodes int `json:"nodes"`
	Tasks int `json:"tasks"` // what the managers place: two a node

	Engines float64 `json:"engines_start_s"` // until all answer
	Join    float64 `json:"join_s"`          // until all are ready
	Carry   float64 `json:"images_carry_s"`  // to all nodes
	Deploy  float64 `json:"deploy_s"`        // until a client on every node has its first ten echoes
	Update  float64 `json:"update_s"`        // a rolling update of the servers, one after the other

	Images  int64 `json:"images_bytes_a_node"` // an archive, not compressed
	Pulled  int64 `json:"images_bytes_in_all"`
	Manager int64 `json:"manager_rss_bytes"` // of dockerd and containerd on node-1
	Worker  int64 `json:"worker_rss_bytes"`  // the mean of the others; 0 where there is none

	Idle   float64 `json:"wire_bytes_per_s"`        // between the nodes, in all, with 10 echoes a second on each
	Loaded float64 `json:"wire_bytes_per_s_loaded"` // the same, while every socket carries what it can
	Socket float64 `json:"socket_bytes_per_s"`      // what they carried, both ways, in all
	P50    []int64 `json:"echo_p50_ns"`             // of each node, 64 bytes
	P99    []int64 `json:"echo_p99_ns"`
}

// quiet is how long the links between the nodes are watched.
const quiet = 10 * time.Second

// Run measures clusters of one node, two, and so on.
func (c *scaleCmd) Run(ctx context.Context, std cli.Std) error {
	if c.Draw {
		text, err := os.ReadFile(c.JSON)
		if err != nil {
			return err
		}
		var all []measurement
		if err := json.Unmarshal(text, &all); err != nil {
			return fmt.Errorf("%s: %w", c.JSON, err)
		}
		return plotScale(all, c.Plot)
	}
	return inLab(ctx, std, func() error {
		var all []measurement
		for nodes := 1; nodes <= c.Nodes; nodes++ {
			fmt.Fprintf(std.Err, "--- measuring %d of %d nodes\n", nodes, c.Nodes)
			m, err := measure(ctx, nodes)
			if err != nil {
				return err
			}
			all = append(all, m)
		}
		return c.report(all, std)
	})
}

func (c *scaleCmd) report(all []measurement, std cli.Std) error {
	t := table.NewWriter()
	t.SetOutputMirror(std.Out)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"nodes", "tasks", "engines", "join", "images", "deploy", "update", "manager", "worker", "wire", "wire, loaded", "sockets", "echo p50", "p99"})
	for _, m := range all {
		seconds := func(s float64) string { return fmt.Sprintf("%.1f s", s) }
		mega := func(b float64) string { return fmt.Sprintf("%.1f MB", b/1e6) }
		kilo := func(b float64) string { return fmt.Sprintf("%.1f kB/s", b/1e3) }
		t.AppendRow(table.Row{
			m.Nodes, m.Tasks, seconds(m.Engines), seconds(m.Join), mega(float64(m.Pulled)), seconds(m.Deploy), seconds(m.Update),
			mega(float64(m.Manager)), mega(float64(m.Worker)), kilo(m.Idle), kilo(m.Loaded), mega(m.Socket) + "/s", micro(m.P50), micro(m.P99),
		})
	}
	t.Render()
	if c.JSON != "" {
		text, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.JSON, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if c.Plot != "" {
		return plotScale(all, c.Plot)
	}
	return nil
}

func micro(all []int64) string {
	var s []string
	for _, ns := range all {
		s = append(s, fmt.Sprintf("%.0f", float64(ns)/1e3))
	}
	return strings.Join(s, ", ") + " µs"
}

func measure(ctx context.Context, nodes int) (m measurement, err error) {
	m.Nodes = nodes
	clock := time.Now()
	lap := func() float64 {
		d := time.Since(clock)
		clock = time.Now()
		return d.Seconds()
	}
	cl, err := startCluster(ctx, nodes)
	defer cl.stop()
	if err != nil {
		return m, err
	}
	m.Engines = lap()
	if err := cl.join(ctx); err != nil {
		return m, err
	}
	m.Join = lap()
	if m.Images, err = cl.carry(ctx); err != nil {
		return m, err
	}
	m.Carry = lap()
	m.Pulled = m.Images * int64(nodes)
	if err := cl.deploy(ctx); err != nil {
		return m, err
	}
	if err := moreEchoes(ctx, cl.nodes, 10); err != nil {
		return m, err
	}
	m.Deploy = lap()
	if err := cl.deploy(ctx, "UDS_LOG_LEVEL=error"); err != nil {
		return m, err
	}
	if err := cl.updated(ctx, "server"); err != nil {
		return m, err
	}
	m.Update = lap()
	if err := moreEchoes(ctx, cl.nodes, 10); err != nil {
		return m, err
	}

	for _, n := range cl.nodes {
		for _, service := range []string{"server", "client"} {
			if _, err := n.running(ctx, service); err != nil {
				return m, err
			}
			m.Tasks++
		}
		memory, err := n.memory("dockerd", "containerd")
		if err != nil {
			return m, err
		}
		if n == cl.manager() {
			m.Manager = memory
		} else {
			m.Worker += memory / int64(nodes-1)
		}
	}
	if m.Idle, err = cl.wire(func() error {
		select {
		case <-time.After(quiet):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}); err != nil {
		return m, err
	}
	// One node after the other: all share this machine's processors.
	for _, n := range cl.nodes {
		rows, err := n.bench(ctx, "--size", "64", "--rounds", "5", "--duration", "1s")
		if err != nil {
			return m, err
		}
		m.P50, m.P99 = append(m.P50, rows.P50), append(m.P99, rows.P99)
	}
	m.Loaded, err = cl.wire(func() error {
		rates := make([]float64, len(cl.nodes))
		err := cl.each(func(n *node) error {
			row, err := n.bench(ctx, "--size", "65536", "--window", "4", "--rounds", "1", "--duration", quiet.String())
			rates[n.number-1] = 2 * row.Bytes * 1e6
			return err
		})
		for _, r := range rates {
			m.Socket += r
		}
		return err
	})
	return m, err
}

// bench measures the node's own server from within its client's container.
func (n *node) bench(ctx context.Context, flags ...string) (bench.Row, error) {
	c, err := n.running(ctx, "client")
	if err != nil {
		return bench.Row{}, err
	}
	out, err := n.docker(ctx, append([]string{"exec", c.ID, "client", "bench", "--json", "-"}, flags...)...)
	if err != nil {
		return bench.Row{}, err
	}
	var result bench.Result
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return bench.Row{}, err
	}
	row := *result.Rows[0]
	if row.Errors > 0 {
		return row, fmt.Errorf("%d errors in the bench on %s", row.Errors, n.name)
	}
	return row, nil
}

// wire counts the bytes that the nodes send to each other during some work, in
// all, a second.
func (c *cluster) wire(work func() error) (float64, error) {
	sent := func() (total int64, err error) {
		for _, n := range c.nodes {
			bytes, err := n.received()
			if err != nil {
				return 0, err
			}
			total += bytes
		}
		return total, nil
	}
	before, err := sent()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := work(); err != nil {
		return 0, err
	}
	after, err := sent()
	return float64(after-before) / time.Since(start).Seconds(), err
}

// received is what has come out of the node's link so far, in bytes: what the
// node has sent, as the switch received it.
func (n *node) received() (int64, error) {
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		name, counts, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == n.link() {
			var bytes int64
			_, err := fmt.Sscan(counts, &bytes)
			return bytes, err
		}
	}
	return 0, fmt.Errorf("the link of %s is not in /proc/net/dev", n.name)
}
