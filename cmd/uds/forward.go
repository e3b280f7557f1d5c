//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/relay"
	"github.com/udsecho/udsecho/internal/relay/record"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

type forwardCmd struct {
	server.ListenFlag
	Connect           addr.Addr     `required:"" placeholder:"ADDR" help:"The target: of the same type as --listen, or stream:PATH and tcp:HOST:PORT in any combination."`
	Bind              string        `placeholder:"NAME" help:"Names of the relay's own sockets, which a datagram target needs to answer: auto (beside the target's socket), DIR/ or none (default: auto)."`
	Retry             time.Duration `default:"0s" placeholder:"DURATION" help:"Keep trying to reach the target for this long, for each client."`
	PassFiles         bool          `help:"Forward descriptors that come with a message, between Unix sockets of one type. Without this flag they end the connection."`
	AsClient          bool          `help:"Connect to the target as the client's user and groups, so that the target sees those and not the relay's: for peer authentication and lists of users. The process stays the relay's. Needs root, and stream or seqpacket on both sides."`
	Show              string        `placeholder:"FORM" help:"Show the forwarded data: hex or json on standard output, or a capture for Wireshark in a new FILE.pcapng."`
	ShowPort          uint16        `placeholder:"PORT" help:"The target's port in a capture, by which Wireshark chooses the protocol: 5432 for PostgreSQL, for example (default: the port of a tcp target, otherwise 80)."`
	server.LimitFlags `set:"idle=0s"`
	cli.RequireFlags
	cli.LogFlags

	name     string // of the target in a record; "" for its path
	recorder *record.Recorder
}

// Validate rejects values that make no sense, and completes tcp:.
func (c *forwardCmd) Validate() error {
	if c.Connect == (addr.Addr{}) {
		return nil // kong reports that it is missing
	}
	for i, a := range c.Listen {
		if host, port, err := net.SplitHostPort(a.Path); a.Type == addr.TCP && err == nil && host == "" {
			c.Listen[i].Path = net.JoinHostPort("127.0.0.1", port)
		}
		if err := c.joins(a); err != nil {
			return err
		}
		if a == c.Connect {
			return fmt.Errorf("--connect %s: the relay listens there itself", a)
		}
	}
	switch {
	case c.Retry < 0:
		return fmt.Errorf("--retry %v: choose 0s or more", c.Retry)
	case c.PassFiles && !c.Connect.Type.Unix():
		return fmt.Errorf("--pass-files: no descriptors pass to %s; use a Unix socket on both sides", c.Connect)
	case c.AsClient && os.Geteuid() != 0:
		return errors.New("--as-client: only root can connect as the client's user; run the relay as root")
	case c.AsClient && (!c.Connect.Type.Unix() || !c.Connect.Type.Connects()):
		return fmt.Errorf("--as-client: a %s target does not see users this way; use stream or seqpacket", c.Connect.Type)
	case c.ShowPort != 0 && !strings.HasSuffix(c.Show, ".pcapng"):
		return fmt.Errorf("--show-port %d: only a capture has ports; write --show FILE.pcapng", c.ShowPort)
	case c.Bind != "" && c.Connect.Type != addr.Datagram:
		return fmt.Errorf("--bind %s: only sockets towards a datagram target have names", c.Bind)
	case c.Bind != "" && c.Bind != "auto" && c.Bind != "none" && !strings.HasSuffix(c.Bind, "/"):
		return fmt.Errorf("--bind %s: each client has a socket of its own towards the target; write auto, DIR/ or none", c.Bind)
	}
	if c.Show != "" {
		if err := record.Check(c.Show); err != nil {
			return err
		}
	}
	return cmp.Or(c.ValidateFor(c.Connect.Type), c.LimitFlags.Validate(c.Listen), c.ListenFlag.Validate())
}

// joins rejects a listening address that the target cannot serve.
func (c *forwardCmd) joins(a addr.Addr) error {
	bytes := func(t addr.Type) bool { return t == addr.Stream || t == addr.TCP }
	switch {
	case a.Type == addr.Files || c.Connect.Type == addr.Files:
		return fmt.Errorf("--listen %s, --connect %s: the relay joins stream and tcp, seqpacket and seqpacket, datagram and datagram", a, c.Connect)
	case a.Type != c.Connect.Type && (!bytes(a.Type) || !bytes(c.Connect.Type)):
		return fmt.Errorf("--listen %s, --connect %s: %s and %s do not join; use the same type on both sides, or stream and tcp", a, c.Connect, a.Type, c.Connect.Type)
	case c.AsClient && !a.Type.Unix():
		return fmt.Errorf("--as-client: the kernel does not know the client's user on %s; use a Unix socket on both sides", a)
	case c.PassFiles && !a.Type.Unix():
		return fmt.Errorf("--pass-files: no descriptors pass from %s; use a Unix socket on both sides", a)
	}
	return nil
}

// Run relays until a signal.
func (c *forwardCmd) Run(ctx context.Context, std cli.Std) error {
	log, lines := c.LoopLogger(std.Err, "")
	defer lines.Flush()
	c.Warn(log)
	if err := c.CheckOpenFiles(c.Listen); err != nil {
		return err
	}
	listen := sock.ListenConfig{Mode: c.Mode.Exact(), Backlog: c.Backlog}
	if !c.PassFiles {
		listen.Control = addr.RefuseRights()
	}
	sockets, _, err := server.Sockets(listen, c.Listen, false)
	for _, s := range sockets {
		if err == nil {
			err = c.joins(s.Addr) // the address may come from systemd
		}
		if err == nil && c.isTarget(s) {
			err = fmt.Errorf("--connect %s: it leads to %s, where the relay listens itself", c.Connect, s.Addr)
		}
		if s.Addr.Type == addr.TCP && !loopback(s.Addr.Path) {
			log.Warn().Msg(logtext.Escape(s.Addr.String()) + ": TCP does not know users, so any process that reaches this address can use the target")
		}
	}
	if err != nil {
		server.CloseSockets(sockets, nil)
		return err
	}
	s, r, err := c.relay(std, log, sockets)
	if err != nil {
		return err
	}
	c.removeStale(log)
	handler := server.SplitHealthChecks(r, echo.New(s, echo.Config{Chunk: 1024, IdleTimeout: c.IdleTimeout}))
	return s.Serve(ctx, c.services(handler, sockets)...)
}

// relay makes a server and its relay. If it fails, it closes the sockets.
func (c *forwardCmd) relay(std cli.Std, log zerolog.Logger, sockets []*addr.Socket) (s *server.Server, r *relay.Relay, err error) {
	defer func() {
		if err != nil {
			server.CloseSockets(sockets, nil)
		}
	}()
	if c.Show != "" {
		if c.recorder, err = record.New(c.Show, c.showPort(), std.Out, cli.IsTerminal(std.Out), log); err != nil {
			return nil, nil, err
		}
	}
	beside := 2 * relay.MaxPipes
	if c.PassFiles {
		beside += relay.MaxHeld
	}
	sendBuffer := 0
	if c.Connect.Type == addr.Seqpacket { // any record that a process can send has to fit
		sendBuffer = sock.MaxMessage() + sock.Overhead
	}
	if s, err = server.New(c.Config(sockets, 2, beside, 2, sendBuffer, log)); err != nil {
		return nil, nil, err
	}
	r, err = relay.New(s, relay.Config{
		Target: c.Connect, Name: c.name, Dial: c.dial, Check: c.CheckCred, Process: os.Getpid(), AsClient: c.AsClient, PassFiles: c.PassFiles, IdleTimeout: c.IdleTimeout,
		MaxPeers: s.MaxConnections, MaxPeersPerUser: s.MaxConnectionsPerUser, Record: c.recorder,
	})
	return s, r, err
}

func (c *forwardCmd) services(handler server.Handler, sockets []*addr.Socket) []server.Service {
	services := server.Services(handler, sockets...)
	for i := range services {
		services[i].Files = c.PassFiles
	}
	return services
}

// showPort returns the target's port in a capture. For HTTP's, Wireshark finds
// HTTP/2 and gRPC, too.
func (c *forwardCmd) showPort() uint16 {
	var port uint64
	if c.Connect.Type == addr.TCP {
		_, text, _ := net.SplitHostPort(c.Connect.Path)
		port, _ = strconv.ParseUint(text, 10, 16)
	}
	return cmp.Or(c.ShowPort, uint16(port), 80)
}

func (c *forwardCmd) dial(ctx context.Context) (*sock.Conn, error) {
	config := sock.DialConfig{Bind: cli.OwnName(c.Bind, c.Connect)} // a new name for each
	if !c.PassFiles {
		config.Control = func(fd int) error { sock.RefuseRights(fd); return nil }
	}
	conn, err := c.Dial(ctx, c.Connect, config, 0)
	if err != nil && c.Retry > 0 && !errors.Is(err, unix.EAGAIN) && sock.NotThereYet(err) { // for a full backlog the relay waits in any case
		conn, err = c.Dial(ctx, c.Connect, config, c.Retry)
	}
	return conn, c.explainBind(err)
}

// isTarget reports whether the target is a socket of the relay itself, under the
// same or another name: through a link or a bind mount, or as another form of a
// TCP address.
func (c *forwardCmd) isTarget(s *addr.Socket) bool {
	if c.Connect.Type.Unix() {
		var st unix.Stat_t
		return !c.Connect.Abstract() && unix.Stat(c.Connect.Path, &st) == nil && s.Is(&st)
	}
	if s.Addr.Type != addr.TCP {
		return false
	}
	target, err := net.ResolveTCPAddr("tcp", c.Connect.Path)
	own, ownErr := net.ResolveTCPAddr("tcp", s.Addr.Path)
	return err == nil && ownErr == nil && target.Port == own.Port &&
		(target.IP.Equal(own.IP) || own.IP.IsUnspecified() && target.IP.IsLoopback())
}

// loopback reports whether an address can be reached only from this machine,
// or this container.
func loopback(hostPort string) bool {
	host, _, _ := net.SplitHostPort(hostPort)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

type healthcheckCmd struct{ server.Healthcheck }

// Run asks the relay for an echo, which never reaches the target.
func (c *healthcheckCmd) Run() error { return c.Check(echo.Check) }
