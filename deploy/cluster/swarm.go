package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sync/errgroup"
)

const stack = "udsecho"

var images = []string{"udsecho-server:latest", "udsecho-client:latest"}

// A cluster is a swarm of nodes. The first node manages it.
type cluster struct {
	nodes []*node
}

func (c *cluster) manager() *node { return c.nodes[0] }

// each calls do for all nodes at once.
func (c *cluster) each(do func(n *node) error) error {
	var group errgroup.Group
	for _, n := range c.nodes {
		group.Go(func() error { return do(n) })
	}
	return group.Wait()
}

func (c *cluster) stop() {
	for _, n := range c.nodes {
		if n != nil {
			n.stop()
		}
	}
}

func startCluster(ctx context.Context, nodes int) (*cluster, error) {
	c := &cluster{nodes: make([]*node, nodes)}
	var group errgroup.Group
	for i := range c.nodes {
		group.Go(func() (err error) {
			c.nodes[i], err = startNode(ctx, i+1)
			return err
		})
	}
	return c, group.Wait()
}

// join makes the engines one swarm.
func (c *cluster) join(ctx context.Context) error {
	m := c.manager()
	_, err := m.api.SwarmInit(ctx, swarm.InitRequest{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: m.addr})
	if err != nil {
		return err
	}
	s, err := m.api.SwarmInspect(ctx)
	if err != nil {
		return err
	}
	err = c.each(func(n *node) error {
		if n == m {
			return nil
		}
		return n.api.SwarmJoin(ctx, swarm.JoinRequest{
			ListenAddr: "0.0.0.0:2377", AdvertiseAddr: n.addr,
			JoinToken: s.JoinTokens.Worker, RemoteAddrs: []string{m.addr + ":2377"},
		})
	})
	if err != nil {
		return err
	}
	return await(ctx, "wait for all nodes to be ready", func() (bool, error) {
		for _, n := range c.nodes {
			if ready, err := c.ready(ctx, n); !ready {
				return false, err
			}
		}
		return true, nil
	})
}

// ready reports whether the manager considers a node ready.
func (c *cluster) ready(ctx context.Context, n *node) (bool, error) {
	nodes, err := c.manager().api.NodeList(ctx, swarm.NodeListOptions{})
	for _, known := range nodes {
		if known.Description.Hostname == n.name {
			return known.Status.State == swarm.NodeStateReady, nil
		}
	}
	return false, err
}

// carry copies the images from this machine's engine, as a registry would
// deliver them, and returns the number of bytes that each node got.
func (c *cluster) carry(ctx context.Context) (int64, error) {
	here, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return 0, err
	}
	defer func() { _ = here.Close() }()
	saved, err := here.ImageSave(ctx, images)
	if err != nil {
		return 0, err
	}
	defer func() { _ = saved.Close() }()
	archive, err := io.ReadAll(saved)
	if err != nil {
		return 0, err
	}
	return int64(len(archive)), c.each(func(n *node) error {
		loaded, err := n.api.ImageLoad(ctx, bytes.NewReader(archive))
		if err != nil {
			return err
		}
		defer func() { _ = loaded.Body.Close() }()
		_, err = io.Copy(io.Discard, loaded.Body)
		return err
	})
}

// deploy deploys the stack, or what has changed in it.
func (c *cluster) deploy(ctx context.Context, env ...string) error {
	cmd := exec.CommandContext(ctx, "docker", "--host", c.manager().host(), "stack", "deploy", "--resolve-image", "never", "-c", "deploy/swarm.yaml", stack)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker stack deploy: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// containers returns the containers of a service on a node, the newest first,
// including those that have ended.
func (n *node) containers(ctx context.Context, service string) ([]container.Summary, error) {
	return n.api.ContainerList(ctx, container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", "com.docker.swarm.service.name="+stack+"_"+service)),
	})
}

// running returns the container of a service that runs on a node.
func (n *node) running(ctx context.Context, service string) (container.Summary, error) {
	all, err := n.containers(ctx, service)
	if err != nil {
		return container.Summary{}, err
	}
	i := slices.IndexFunc(all, func(c container.Summary) bool { return c.State == "running" })
	if i < 0 {
		return container.Summary{}, fmt.Errorf("no %s runs on %s", service, n.name)
	}
	return all[i], nil
}

// logs returns the standard output and the standard error of a container so
// far.
func (n *node) logs(ctx context.Context, id, tail string) (stdout, stderr bytes.Buffer, err error) {
	r, err := n.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: tail})
	if err != nil {
		return stdout, stderr, err
	}
	defer func() { _ = r.Close() }()
	_, err = stdcopy.StdCopy(&stdout, &stderr, r)
	return stdout, stderr, err
}

// A tally is what the clients of a node have counted.
type tally struct{ echoes, failures int }

func (t tally) minus(u tally) tally { return tally{t.echoes - u.echoes, t.failures - u.failures} }

func (n *node) tally(ctx context.Context) (sum tally, err error) {
	all, err := n.containers(ctx, "client")
	if err != nil {
		return sum, err
	}
	for _, c := range all {
		out, _, err := n.logs(ctx, c.ID, "10")
		if err != nil {
			return sum, err
		}
		var last tally
		for lines := bufio.NewScanner(&out); lines.Scan(); {
			if _, err := fmt.Sscanf(lines.Text(), "echoes %d failures %d", &last.echoes, &last.failures); err != nil {
				return sum, fmt.Errorf("the log of a client on %s: %q: %w", n.name, lines.Text(), err)
			}
		}
		sum.echoes += last.echoes
		sum.failures += last.failures
	}
	return sum, nil
}

// tallies returns the tallies of all the nodes given.
func tallies(ctx context.Context, nodes []*node) (map[*node]tally, error) {
	all := map[*node]tally{}
	for _, n := range nodes {
		t, err := n.tally(ctx)
		if err != nil {
			return nil, err
		}
		all[n] = t
	}
	return all, nil
}

// moreEchoes waits until the client of each node has made this many more
// echoes.
func moreEchoes(ctx context.Context, nodes []*node, more int) error {
	var group errgroup.Group
	for _, n := range nodes {
		group.Go(func() error {
			first, err := n.tally(ctx)
			if err != nil {
				return err
			}
			return await(ctx, fmt.Sprintf("wait for %d echoes on %s", more, n.name), func() (bool, error) {
				now, err := n.tally(ctx)
				return err == nil && now.echoes-first.echoes >= more, err
			})
		})
	}
	return group.Wait()
}

// complaints returns the last lines that the clients of a node wrote about
// failures.
func (n *node) complaints(ctx context.Context) string {
	all, _ := n.containers(ctx, "client")
	var text strings.Builder
	for _, c := range all {
		if _, errs, err := n.logs(ctx, c.ID, "all"); err == nil {
			text.Write(errs.Bytes())
		}
	}
	return text.String()
}

// servedBy returns the name of the server that received the message of the
// node's client: one name, or an error. The message is the name of the
// client's node.
func (n *node) servedBy(ctx context.Context) (string, error) {
	c, err := n.running(ctx, "server")
	if err != nil {
		return "", err
	}
	_, log, err := n.logs(ctx, c.ID, "all")
	if err != nil {
		return "", err
	}
	var names []string
	for lines := bufio.NewScanner(&log); lines.Scan(); {
		var event struct{ Identity, Message string }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return "", fmt.Errorf("the log of the server on %s: %w", n.name, err)
		}
		from, received := strings.CutPrefix(event.Message, "received '")
		from = strings.TrimSuffix(from, "'")
		if !received || from == "" {
			continue
		}
		if from != n.name {
			return "", fmt.Errorf("the server on %s, which is %q, received a message of %q", n.name, event.Identity, from)
		}
		if !slices.Contains(names, event.Identity) {
			names = append(names, event.Identity)
		}
	}
	if len(names) != 1 {
		return "", fmt.Errorf("the messages of the client on %s were received by %q, want one server", n.name, names)
	}
	return names[0], nil
}

// updated waits for the end of a rolling update.
func (c *cluster) updated(ctx context.Context, service string) error {
	failed := errors.New("")
	err := await(ctx, "wait for the update of "+service, func() (bool, error) {
		s, _, err := c.manager().api.ServiceInspectWithRaw(ctx, stack+"_"+service, swarm.ServiceInspectOptions{})
		if err != nil || s.UpdateStatus == nil {
			return false, err
		}
		switch s.UpdateStatus.State {
		case swarm.UpdateStateCompleted:
			return true, nil
		case swarm.UpdateStateUpdating:
			return false, nil
		}
		failed = fmt.Errorf("the update of %s: %s: %s", service, s.UpdateStatus.State, s.UpdateStatus.Message)
		return true, nil
	})
	if failed.Error() != "" {
		return failed
	}
	return err
}
