//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/udsecho/udsecho/internal/inspect"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// table writes a line for each socket.
func table(out io.Writer, sockets []*inspect.Socket) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer func() { _ = w.Flush() }()
	fmt.Fprintln(w, "ADDRESS\tTYPE\tWAITING\tOPEN\tSERVER\tCLIENTS")
	for _, s := range sockets {
		address, waiting := s.Address, "-"
		if s.Pair() {
			address = "(pair)"
		}
		if s.Waiting != nil && s.Backlog != nil {
			waiting = fmt.Sprintf("%d/%d", *s.Waiting, *s.Backlog)
		}
		var clients []*inspect.End
		for _, c := range s.Connections {
			clients = append(clients, c.Client)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", address, s.Type, waiting, s.Open, servers(s), summary(clients...))
	}
}

// details writes each connection of sockets.
func details(out io.Writer, sockets []*inspect.Socket) {
	for _, s := range sockets {
		left, right := "CLIENT", "SERVER"
		switch {
		case s.Pair():
			fmt.Fprintf(out, "pair, %s\n", s.Type)
			left, right = "ONE END", "THE OTHER"
		case s.Waiting != nil && s.Backlog != nil:
			fmt.Fprintf(out, "%s, %s, served by %s; %d of %d wait, %d open\n", s.Address, s.Type, servers(s), *s.Waiting, *s.Backlog, s.Open)
		default:
			fmt.Fprintf(out, "%s, %s, served by %s; %d open\n", s.Address, s.Type, servers(s), s.Open)
		}
		if len(s.Connections) == 0 {
			continue
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "  %s\tINODE\tUNREAD\t%s\tINODE\tUNREAD\n", left, right)
		for _, c := range s.Connections {
			fmt.Fprintf(w, "  %s\t%s\n", half(c.Client, s.Type, "(closed)"), half(c.Server, s.Type, "(waits to be accepted)"))
		}
		_ = w.Flush()
	}
}

func half(e *inspect.End, t sock.Type, none string) string {
	if e == nil {
		return none + "\t-\t-"
	}
	unread := "-"
	if e.Unread != nil && t != sock.Datagram { // of datagrams, only the next is known
		unread = fmt.Sprint(*e.Unread)
	}
	return fmt.Sprintf("%s\t%d\t%s", summary(e), e.Inode, unread)
}

// servers describes the processes that serve; if the listening socket is closed
// or not seen, those that have accepted.
func servers(s *inspect.Socket) string {
	if s.Server != nil {
		return summary(s.Server)
	}
	var accepted []*inspect.End
	for _, c := range s.Connections {
		accepted = append(accepted, c.Server)
	}
	if s.Pair() {
		return summary(accepted...)
	}
	return summary(accepted...) + " (no listener seen)"
}

// summary names up to three processes, and how many of the sockets they have.
func summary(ends ...*inspect.End) string {
	const most = 3
	var names []string
	count := map[string]int{}
	for _, e := range ends {
		for _, name := range holders(e) {
			if count[name]++; count[name] == 1 {
				names = append(names, name)
			}
		}
	}
	for i, name := range names {
		if n := count[name]; n > 1 {
			names[i] += fmt.Sprintf(" ×%d", n)
		}
	}
	if more := len(names) - most; more > 0 {
		names = append(names[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

func holders(e *inspect.End) (names []string) {
	switch {
	case e == nil:
		return []string{"(closed)"}
	case len(e.Processes) == 0 && e.UID == nil:
		return []string{"(process not seen)"}
	case len(e.Processes) == 0:
		return []string{"(process not seen) " + userName(*e.UID)}
	}
	for _, p := range e.Processes {
		name := process(p)
		if p.Container != nil {
			name = p.Container.String() + ": " + name
		}
		names = append(names, name)
	}
	return names
}

// process describes a process without its container. A container has its own
// names of users.
func process(p *inspect.Process) string {
	user := fmt.Sprint(p.UID)
	if p.Container == nil {
		user = userName(p.UID)
	}
	return fmt.Sprintf("%s[%d] %s", p.Name, p.PID, user)
}

var userNames = map[uint32]string{}

// userName looks up each user once.
func userName(uid uint32) string {
	if _, ok := userNames[uid]; !ok {
		userNames[uid] = logtext.Escape(inspect.UserName(uid))
	}
	return userNames[uid]
}
