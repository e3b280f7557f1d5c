package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/udsecho/udsecho/internal/cli"
)

type demoCmd struct {
	Nodes int `default:"3" placeholder:"N" help:"How many nodes (default: ${default})."`
}

// Validate rejects too few nodes, of which an engine kill would leave none,
// and too many for one machine.
func (c *demoCmd) Validate() error {
	if c.Nodes < 2 || c.Nodes > 20 {
		return fmt.Errorf("--nodes %d: choose from 2 to 20", c.Nodes)
	}
	return nil
}

// pause is the time between two echoes of a client.
const pause = "PAUSE=0.02"

// Run runs the demonstration.
func (c *demoCmd) Run(ctx context.Context, std cli.Std) error {
	return inLab(ctx, std, func() error { return c.show(ctx, std) })
}

func (c *demoCmd) show(ctx context.Context, std cli.Std) error {
	say := func(format string, args ...any) { fmt.Fprintf(std.Err, "--- "+format+"\n", args...) }

	say("starting %d nodes, each with an engine of its own, as one swarm", c.Nodes)
	cl, err := startCluster(ctx, c.Nodes)
	defer cl.stop()
	if err != nil {
		return err
	}
	if err := cl.join(ctx); err != nil {
		return err
	}
	if _, err := cl.carry(ctx); err != nil {
		return err
	}

	say("docker stack deploy -c deploy/swarm.yaml: a server and a client on every node")
	if err := cl.deploy(ctx, "UDS_LOG_LEVEL=info", pause); err != nil {
		return err
	}
	if err := moreEchoes(ctx, cl.nodes, 20); err != nil {
		return err
	}
	servers := map[*node]string{}
	for _, n := range cl.nodes {
		if servers[n], err = n.servedBy(ctx); err != nil {
			return err
		}
	}

	say("rolling update of the servers, node by node, while the clients continue")
	before, err := tallies(ctx, cl.nodes)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cl.deploy(ctx, "UDS_LOG_LEVEL=warn", pause); err != nil {
		return err
	}
	if err := cl.updated(ctx, "server"); err != nil {
		return err
	}
	updating := time.Since(start)
	if err := moreEchoes(ctx, cl.nodes, 20); err != nil {
		return err
	}
	update, err := since(ctx, cl.nodes, before)
	if err != nil {
		return err
	}

	victim, others := cl.nodes[c.Nodes-1], cl.nodes[:c.Nodes-1]
	say("killing the engine of %s (SIGKILL)", victim.name)
	if before, err = tallies(ctx, cl.nodes); err != nil {
		return err
	}
	start = time.Now()
	if err := victim.killEngine(ctx); err != nil {
		return err
	}
	err = await(ctx, "wait for the swarm to miss "+victim.name, func() (bool, error) {
		ready, err := cl.ready(ctx, victim)
		return err == nil && !ready, err
	})
	if err != nil {
		return err
	}
	if err := moreEchoes(ctx, others, 20); err != nil {
		return err
	}
	down := time.Since(start)
	kill, err := since(ctx, others, before)
	if err != nil {
		return err
	}

	say("starting it again")
	start = time.Now()
	if err := victim.startEngine(ctx); err != nil {
		return err
	}
	err = await(ctx, "wait for "+victim.name+" to heal", func() (bool, error) {
		if ready, err := cl.ready(ctx, victim); !ready {
			return false, err
		}
		for _, service := range []string{"server", "client"} {
			if _, err := victim.running(ctx, service); err != nil {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if err := moreEchoes(ctx, []*node{victim}, 20); err != nil {
		return err
	}
	healing := time.Since(start)
	heal, err := since(ctx, []*node{victim}, before)
	if err != nil {
		return err
	}

	t := table.NewWriter()
	t.SetOutputMirror(std.Out)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"node", "served by", "client", "echoes", "failures"})
	var failures error
	for _, n := range cl.nodes {
		client, err := n.running(ctx, "client")
		if err != nil {
			return err
		}
		sum, err := n.tally(ctx)
		if err != nil {
			return err
		}
		t.AppendRow(table.Row{n.name, servers[n], client.ID[:12], sum.echoes, sum.failures})
		if servers[n] != n.name {
			failures = errors.Join(failures, fmt.Errorf("the client on %s was served by %q", n.name, servers[n]))
		}
	}
	t.Render()
	fmt.Fprintf(std.Out, "rolling update: %d servers in %.0f s; %d echoes meanwhile, %d failed\n",
		c.Nodes, updating.Seconds(), update.echoes, update.failures)
	fmt.Fprintf(std.Out, "engine of %s killed for %.0f s: on the other nodes %d echoes, %d failed\n",
		victim.name, down.Seconds(), kill.echoes, kill.failures)
	fmt.Fprintf(std.Out, "%s healed %.0f s after its engine came back; there %d echoes since the kill, %d failed\n",
		victim.name, healing.Seconds(), heal.echoes, heal.failures)
	if update.failures+kill.failures > 0 {
		for _, n := range cl.nodes {
			fmt.Fprint(std.Err, n.complaints(ctx))
		}
		failures = errors.Join(failures, fmt.Errorf("%d echoes failed: see the lines above", update.failures+kill.failures))
	}
	return failures
}

// since returns what the clients of the nodes have counted since before, in
// all.
func since(ctx context.Context, nodes []*node, before map[*node]tally) (sum tally, err error) {
	now, err := tallies(ctx, nodes)
	for n, t := range now {
		d := t.minus(before[n])
		sum.echoes += d.echoes
		sum.failures += d.failures
	}
	return sum, err
}
