//go:build linux

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/udsecho/udsecho/internal/inspect"
)

// A language describes graphs.
type language struct {
	begin, group, node, groupEnd, edge, end string // formats: a group has its number and name, a node its id and label, an edge from, to, label
	quote                                   *strings.Replacer
}

var mermaid = language{
	"flowchart LR\n", "  subgraph c%d[\"%s\"]\n", "    p%d[\"%s\"]\n", "  end\n", "  p%d -- \"%[3]s\" --> p%[2]d\n", "",
	strings.NewReplacer(`"`, "#quot;", "#", "#35;", "<", "#lt;", ">", "#gt;", "&", "#amp;", "`", "#96;", `\`, "#92;"),
}

var dot = language{
	"digraph sockets {\n  rankdir=LR\n  node [shape=box]\n", "  subgraph cluster_%d {\n    label=\"%s\"\n", "    p%d [label=\"%s\"]\n", "  }\n", "  p%d -> p%d [label=\"%s\"]\n", "}\n",
	strings.NewReplacer(`"`, `\"`, `\`, `\\`),
}

// An edge is drawn from a client to a server, by their numbers among the nodes.
type edge struct {
	from, to int
	label    string
}

// A picture has a node for each process, and one edge for all connections of
// two of them through the same socket.
type picture struct {
	nodes [][2]string // container, "" for the machine itself; label
	edges []edge
	count map[edge]int
}

// draw writes the graph of who talks to whom.
func (l *language) draw(w io.Writer, sockets []*inspect.Socket) {
	p := &picture{count: map[edge]int{}}
	for _, s := range sockets {
		p.add(s)
	}
	fmt.Fprint(w, l.begin)
	drawn := map[string]bool{}
	for i, node := range p.nodes {
		container := node[0]
		if drawn[container] {
			continue
		}
		drawn[container] = true
		if container != "" {
			fmt.Fprintf(w, l.group, i, l.quote.Replace(container))
		}
		for n, node := range p.nodes {
			if node[0] == container {
				fmt.Fprintf(w, l.node, n, l.quote.Replace(node[1]))
			}
		}
		if container != "" {
			fmt.Fprint(w, l.groupEnd)
		}
	}
	for _, e := range p.edges {
		label := cmp.Or(e.label, "pair")
		if n := p.count[e]; n > 1 {
			label += fmt.Sprintf(" ×%d", n)
		}
		fmt.Fprintf(w, l.edge, e.from, e.to, l.quote.Replace(label))
	}
	fmt.Fprint(w, l.end)
}

func (p *picture) add(s *inspect.Socket) {
	if s.Server != nil {
		p.ends(s.Server) // a server without clients is shown too
	}
	for _, c := range s.Connections {
		to := p.ends(cmp.Or(c.Server, s.Server))
		for _, from := range p.ends(c.Client) {
			for _, to := range to {
				e := edge{from, to, s.Address}
				if p.count[e]++; p.count[e] == 1 {
					p.edges = append(p.edges, e)
				}
			}
		}
	}
}

// ends returns the nodes of the processes that have a socket open.
func (p *picture) ends(e *inspect.End) (nodes []int) {
	switch {
	case e == nil:
		return nil
	case len(e.Processes) == 0:
		return []int{p.node("", holders(e)[0])}
	}
	for _, of := range e.Processes {
		container := ""
		if of.Container != nil {
			container = of.Container.String()
		}
		nodes = append(nodes, p.node(container, process(of)))
	}
	return nodes
}

func (p *picture) node(container, label string) int {
	n := slices.Index(p.nodes, [2]string{container, label})
	if n < 0 {
		n = len(p.nodes)
		p.nodes = append(p.nodes, [2]string{container, label})
	}
	return n
}
