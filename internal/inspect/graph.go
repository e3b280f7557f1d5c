package inspect

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// A Socket is an address that is served, with its connections; or a pair
// without an address, socketpair(2), with its only one.
type Socket struct {
	Address     string       `json:"address"` // as the server has bound it, in its own view of the files; @NAME; "" for a pair
	Type        sock.Type    `json:"type"`
	Namespace   uint64       `json:"netns"`   // the number of its network namespace
	Server      *End         `json:"server"`  // the socket that listens or receives; nil if it is closed or not seen, and for a pair
	Waiting     *uint32      `json:"waiting"` // connections that wait to be accepted; nil if it does not listen
	Backlog     *uint32      `json:"backlog"` // how many may wait; the kernel admits one more
	Open        int          `json:"open"`    // connections that are accepted; for a datagram socket, clients that are connected
	Connections []Connection `json:"connections"`

	bound why.Socket
}

// Pair reports whether it is a pair without an address.
func (s *Socket) Pair() bool { return s.Address == "" }

// A Connection is two open sockets.
type Connection struct {
	Client *End `json:"client"` // nil if the client has closed it
	Server *End `json:"server"` // nil if it waits to be accepted
}

// An End is an open socket and the processes that have it open: several, if it
// was inherited or passed on; none, if they cannot be seen.
type End struct {
	Inode     uint32     `json:"inode"`
	UID       *uint32    `json:"uid"`    // the user who has made it; nil before Linux 5.3
	Unread    *uint32    `json:"unread"` // bytes that have arrived; for a datagram socket, those of the next message
	Processes []*Process `json:"processes"`
}

// An address is what a listening socket and the accepted ones have in common.
// An abstract name belongs to one namespace and one type.
type address struct {
	file   why.File
	name   string
	soType uint8
	netns  uint64
}

type open struct {
	why.Socket
	netns uint64
	end   *End
}

func (o *open) address() address {
	if o.File != (why.File{}) {
		return address{file: o.File}
	}
	return address{name: o.Name, soType: o.SoType, netns: o.netns}
}

// A graph has the open sockets, by number, and those that serve.
type graph struct {
	open     map[uint32]*open
	listens  map[address]*Socket
	receives map[uint32]*Socket // datagram sockets, by number
	waiting  map[uint32]*Socket // by the number of the client that waits
	sockets  []*Socket
}

// join finds out which open sockets belong together, and sorts by address.
func join(all []namespace, held map[uint32][]*Process) []*Socket {
	g := &graph{map[uint32]*open{}, map[address]*Socket{}, map[uint32]*Socket{}, map[uint32]*Socket{}, nil}
	var numbers []uint32
	for _, ns := range all {
		for _, s := range ns.sockets {
			if g.open[s.Number] == nil { // otherwise it has moved in the kernel's table meanwhile
				g.add(&open{s, ns.number, &End{s.Number, s.UID, s.Queue, append([]*Process{}, held[s.Number]...)}}, ns.waiting[s.Number])
				numbers = append(numbers, s.Number)
			}
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		g.connect(g.open[n])
	}
	g.sockets = slices.DeleteFunc(g.sockets, func(s *Socket) bool {
		return s.Type == sock.Datagram && automatic.MatchString(s.bound.Name) && len(s.Connections) == 0
	})
	slices.SortFunc(g.sockets, func(a, b *Socket) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.bound.Number, b.bound.Number))
	})
	return g.sockets
}

// automatic is a name that the kernel has chosen for a client, unix(7).
var automatic = regexp.MustCompile("^\x00[0-9a-f]{5}$")

// add adds an open socket; waiting are its clients that are not accepted yet.
func (g *graph) add(o *open, waiting []uint32) {
	g.open[o.Number] = o
	switch {
	case o.State == why.Listening:
		s := g.serve(o)
		s.Server, s.Waiting, s.Backlog, o.end.Unread = o.end, o.Queue, o.Limit, nil
		g.listens[o.address()] = s
		for _, client := range waiting {
			g.waiting[client] = s
		}
	case o.SoType == unix.SOCK_DGRAM && o.Name != "" && o.Peer == 0:
		s := g.serve(o)
		s.Server = o.end
		g.receives[o.Number] = s
	}
}

func (g *graph) serve(o *open) *Socket {
	s := &Socket{Address: nameOf(o.Name), Type: sock.TypeOf(int(o.SoType)), Namespace: o.netns, Connections: []Connection{}, bound: o.Socket}
	g.sockets = append(g.sockets, s)
	return s
}

func (s *Socket) connection(client, server *End) {
	s.Connections = append(s.Connections, Connection{client, server})
	if server != nil {
		s.Open++
	}
}

// connect adds the connection of a socket, once for its two ends: for the end
// that the server has accepted, which has the number of the client's as its
// peer, and the address of the listening socket; for a pair, at the end with
// the lower number.
func (g *graph) connect(o *open) {
	peer := g.open[o.Peer]
	switch {
	case o.State == why.Listening || peer == o:
	case g.waiting[o.Number] != nil:
		g.waiting[o.Number].connection(o.end, nil)
	case g.receives[o.Peer] != nil:
		r := g.receives[o.Peer]
		r.connection(o.end, r.Server)
	case o.State == why.Established && o.SoType != unix.SOCK_DGRAM && g.accepted(o, peer):
		to := g.listens[o.address()]
		if to == nil { // the listening socket is closed, or not seen
			to = g.serve(o)
			g.listens[o.address()] = to
		}
		if peer == nil {
			to.connection(nil, o.end)
		} else {
			to.connection(peer.end, o.end)
		}
	case peer == nil || peer.Peer != o.Number || o.Number > o.Peer:
	case o.Name == "" && peer.Name == "":
		g.serve(o).connection(o.end, peer.end)
	case o.SoType == unix.SOCK_DGRAM: // two that are connected to each other
		s := g.serve(o)
		s.Server = o.end
		s.connection(peer.end, o.end)
	}
}

// accepted reports whether an end of a stream is the server's. If no
// listening socket is seen, it is the one with a name, of two with names the later.
func (g *graph) accepted(o, peer *open) bool {
	switch {
	case o.Name == "":
		return false
	case g.listens[o.address()] != nil || peer == nil || peer.Name == "":
		return true
	default:
		return g.listens[peer.address()] == nil && o.Number > peer.Number
	}
}

// nameOf returns a name as people write it. Programs that pass a whole
// sockaddr_un to bind(2) have abstract names with many NUL bytes at the end.
func nameOf(bound string) string {
	name := strings.TrimRight(bound, "\x00")
	if strings.HasPrefix(name, "\x00") {
		name = "@" + name[1:]
	}
	return logtext.Escape(name)
}
