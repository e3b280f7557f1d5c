package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/inspect"
)

// What is drawn: two clients of one server in containers, one of them with two
// connections; one that waits and cannot be seen; a pair; names that would end
// a label.
func pictured() []*inspect.Socket {
	name := func(pid int, name, container string) *inspect.End {
		p := &inspect.Process{PID: pid, Name: name, UID: 4000000}
		if container != "" {
			p.Container = &inspect.Container{ID: strings.Repeat("0", 64), Name: container}
		}
		return &inspect.End{Inode: uint32(pid), Processes: []*inspect.Process{p}}
	}
	server, one, two := name(1, "server", "stack-server-1"), name(2, "a", "stack-client-1"), name(3, "b", "stack-client-1")
	quotes, plain := name(4, "\"`]<&#\\", ""), name(5, "plain", "")
	return []*inspect.Socket{
		{Address: "/run/s", Server: server, Connections: []inspect.Connection{
			{Client: one, Server: server}, {Client: two, Server: server}, {Client: one, Server: server}, {Client: &inspect.End{}}, {Server: server},
		}},
		{Address: "@\"`]<&#\\", Server: quotes, Connections: []inspect.Connection{{Client: one, Server: quotes}}},
		{Connections: []inspect.Connection{{Client: plain, Server: quotes}}},
		{Address: "/alone", Server: name(6, "alone", "")},
	}
}

func TestMermaidHasContainersProcessesAndSockets(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	mermaid.draw(&b, pictured())
	if d := cmp.Diff(`flowchart LR
  subgraph c0["stack-server-1"]
    p0["server[1] 4000000"]
  end
  subgraph c1["stack-client-1"]
    p1["a[2] 4000000"]
    p2["b[3] 4000000"]
  end
    p3["(process not seen)"]
    p4["#quot;#96;]#lt;#amp;#35;#92;[4] 4000000"]
    p5["plain[5] 4000000"]
    p6["alone[6] 4000000"]
  p1 -- "/run/s ×2" --> p0
  p2 -- "/run/s" --> p0
  p3 -- "/run/s" --> p0
  p1 -- "@#quot;#96;]#lt;#amp;#35;#92;" --> p4
  p5 -- "pair" --> p4
`, b.String()); d != "" {
		t.Errorf("mermaid (-want +got):\n%s", d)
	}
}

func TestDotHasContainersProcessesAndSockets(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	dot.draw(&b, pictured())
	if d := cmp.Diff(`digraph sockets {
  rankdir=LR
  node [shape=box]
  subgraph cluster_0 {
    label="stack-server-1"
    p0 [label="server[1] 4000000"]
  }
  subgraph cluster_1 {
    label="stack-client-1"
    p1 [label="a[2] 4000000"]
    p2 [label="b[3] 4000000"]
  }
    p3 [label="(process not seen)"]
    p4 [label="\"`+"`"+`]<&#\\[4] 4000000"]
    p5 [label="plain[5] 4000000"]
    p6 [label="alone[6] 4000000"]
  p1 -> p0 [label="/run/s ×2"]
  p2 -> p0 [label="/run/s"]
  p3 -> p0 [label="/run/s"]
  p1 -> p4 [label="@\"`+"`"+`]<&#\\"]
  p5 -> p4 [label="pair"]
}
`, b.String()); d != "" {
		t.Errorf("dot (-want +got):\n%s", d)
	}
}
