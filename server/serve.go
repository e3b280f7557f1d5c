//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/echoserver"
	"github.com/udsecho/udsecho/internal/fileserver"
	"github.com/udsecho/udsecho/internal/stats"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

type serveCmd struct {
	listenFlag
	Mode           mode            `placeholder:"OCTAL" help:"Permission bits of the socket file; who may write may connect (default: what the umask leaves of 0777)."`
	Chunk          int             `default:"16" placeholder:"BYTES" help:"Size of one receive on a stream (default: ${default})."`
	Backlog        int             `default:"0" placeholder:"N" help:"Connections that may wait to be accepted (default: as many as the system allows)."`
	Sndbuf         int             `default:"0" placeholder:"BYTES" help:"Send buffer of datagram and seqpacket sockets, SO_SNDBUF as the kernel counts it; a message may be 32 bytes less (default: the system's)."`
	Spin           time.Duration   `default:"100us" placeholder:"DURATION" help:"How long the server goes on asking, after it had something to do, before it sleeps: faster answers for some CPU time. 0s: not at all; nor with one processor (default: ${default})."`
	AllowUID       []uint32        `name:"allow-uid" placeholder:"UID" help:"Serve only clients of this user; others are turned away before a byte is read. Repeatable; so is --allow-gid, and one of them is enough. The server's own user is always served (default: everybody who may connect)."`
	AllowGID       []uint32        `name:"allow-gid" placeholder:"GID" help:"Serve only clients whose effective group is this one (default: everybody who may connect)."`
	Takeover       bool            `help:"Take the sockets over from the server that runs at these paths, if one does and was started with --takeover too: it hands them over, serves its clients to the end, within its --drain-timeout, and exits. No client is refused meanwhile."`
	MaxConnections int             `default:"1000" placeholder:"N" help:"Open connections; further clients are turned away, but a few health checks. 0: no limit. Never more than the limit of open files allows (default: ${default})."`
	MaxPerUser     *int            `placeholder:"N" help:"Open connections of one user, so that none can take them all. 0: no limit (default: nine tenths of --max-connections)."`
	IdleTimeout    time.Duration   `default:"10m" placeholder:"DURATION" help:"Clients that say nothing for so long are turned away. 0s: none (default: ${default})."`
	WriteTimeout   time.Duration   `default:"30s" placeholder:"DURATION" help:"Clients that take nothing of what is sent to them for so long are turned away. 0s: none (default: ${default})."`
	Admin          *transport.Addr `placeholder:"ADDR" help:"Where to serve metrics and status over HTTP, to the server's own user: stream:PATH, always of mode 0600 (default: nowhere)."`
	DrainTimeout   time.Duration   `default:"5s" placeholder:"DURATION" help:"How long running echoes may take after SIGTERM or SIGINT; a second signal ends them at once (default: ${default})."`
	Identity       string          `placeholder:"TEXT" help:"Who this server is, its node's name for example: a field of every event, and of --admin's status (default: none)."`
	cli.LogFlags
}

// Validate turns away numbers that make no sense.
func (c *serveCmd) Validate() error {
	switch {
	case c.Chunk < 1 || c.Chunk > 16<<20:
		return fmt.Errorf("--chunk %d: choose from 1 to %d bytes", c.Chunk, 16<<20)
	case c.Backlog < 0 || c.Backlog > 1<<16:
		return fmt.Errorf("--backlog %d: choose from 0 to %d connections", c.Backlog, 1<<16)
	case c.Sndbuf < 0 || c.Sndbuf > 1<<30:
		return fmt.Errorf("--sndbuf %d: choose from 0 to %d bytes", c.Sndbuf, 1<<30)
	case c.Spin < 0 || c.Spin > time.Second:
		return fmt.Errorf("--spin %v: choose from 0s to 1s", c.Spin)
	case c.MaxPerUser != nil && *c.MaxPerUser < 0:
		return fmt.Errorf("--max-per-user %d: choose 0 for no limit, or more", *c.MaxPerUser)
	case c.IdleTimeout < 0 || c.WriteTimeout < 0:
		return errors.New("--idle-timeout, --write-timeout: choose 0s for no limit, or more")
	case c.Admin != nil && c.Admin.Abstract():
		return fmt.Errorf("--admin %s: an abstract name is everybody's in the network namespace: write a path", c.Admin)
	case c.Admin != nil && c.Admin.Type != transport.Stream:
		return fmt.Errorf("--admin %s: HTTP needs a stream: write stream:PATH", c.Admin)
	case c.Admin != nil && slices.ContainsFunc(c.Listen, func(a transport.Addr) bool { return a.Path == c.Admin.Path }):
		return fmt.Errorf("--admin %s: the path is given to --listen too", c.Admin)
	case c.MaxConnections < 0:
		return fmt.Errorf("--max-connections %d: choose 0 for no limit, or more", c.MaxConnections)
	case c.DrainTimeout < 0:
		return fmt.Errorf("--drain-timeout %v: choose 0s or more", c.DrainTimeout)
	}
	for _, a := range c.Listen {
		if c.Takeover && (!a.Type.Unix() || a.Abstract()) {
			return fmt.Errorf("--listen %s: --takeover needs a path: the control socket is beside it", a)
		}
		if !a.Type.Unix() && c.allow() != nil {
			return fmt.Errorf("--listen %s: --allow-uid and --allow-gid need a Unix socket: the kernel does not know who is at the other end of %s", a, a.Type)
		}
	}
	return c.listenFlag.Validate()
}

// allow is who is served by --allow-uid and --allow-gid, nil for everybody. The
// server's own user is, because the health check is.
func (c *serveCmd) allow() func(unix.Ucred) bool {
	if len(c.AllowUID)+len(c.AllowGID) == 0 {
		return nil
	}
	return func(cred unix.Ucred) bool {
		return uds.IsOwnUser(cred.Uid) || slices.Contains(c.AllowUID, cred.Uid) || slices.Contains(c.AllowGID, cred.Gid)
	}
}

// Run serves until a signal. It listens on all addresses or on none.
func (c *serveCmd) Run(ctx context.Context, std cli.Std) error {
	log := c.Logger(std.Err)
	if c.Identity != "" {
		log = log.With().Str("identity", transcript.Escape(c.Identity)).Logger()
	}
	if names := c.abstract(); names != "" {
		log.Warn().Msg(transcript.Escape(names) + ": an abstract name belongs to the network namespace: clients in other containers do not find it")
	}
	config := transport.ListenConfig{Mode: fs.FileMode(c.Mode), Backlog: c.Backlog, SendBuffer: c.Sndbuf}
	stats := new(stats.Server)
	sockets, handover, err := c.sockets(config)
	stopAdmin := func() {}
	if err == nil {
		// After the sockets: whoever gets an answer finds them, too.
		stopAdmin, err = c.startAdmin(ctx, stats, log)
	}
	if err != nil {
		closeAll(sockets, handover)
		return err
	}
	defer stopAdmin()
	most := c.maxConnections(sockets, log)
	server := echoserver.Config{
		Chunk: c.Chunk, Spin: c.Spin, SendBuffer: c.Sndbuf, MaxConnections: most, DrainTimeout: c.DrainTimeout,
		MaxConnectionsPerUser: c.maxPerUser(most), IdleTimeout: c.IdleTimeout, WriteTimeout: c.WriteTimeout,
		Allow: c.allow(), Handover: handover, OwnDirectory: c.absolute(), Stats: stats, Log: log,
	}
	reader := fileserver.NewServer(fileserver.Config{IdleTimeout: c.IdleTimeout, WriteTimeout: c.WriteTimeout, Stats: stats, Log: log})
	defer reader.Stop()
	server.Files = reader.Serve
	return server.Serve(ctx, sockets...)
}

// Descriptors that are not those of connections, and not open yet when a server
// starts.
const ownDescriptors = 16 // of the loop and of Go; while a socket is made again; of a server that takes over

// maxConnections is --max-connections, or less where the limit of open files
// does not allow as many. A server that could not accept would leave clients
// waiting without a word, its own health check behind them: so what lacks a
// descriptor is turned away as at any other limit, and the health check, the
// admin socket and the server's own work find one. If the limit is lowered
// later, clients wait until there are descriptors again.
func (c *serveCmd) maxConnections(sockets []*transport.Socket, log zerolog.Logger) int {
	var limit unix.Rlimit
	open, err := os.ReadDir("/proc/self/fd")
	if err == nil {
		err = os.NewSyscallError("getrlimit", unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	}
	if err != nil {
		log.Warn().Err(err).Msgf("cannot tell how many connections the limit of open files allows: %s", transcript.Escape(err.Error()))
		return c.MaxConnections
	}
	has := func(t transport.Type) bool {
		return slices.ContainsFunc(sockets, func(s *transport.Socket) bool { return s.Addr.Type == t })
	}
	each, beside := 1, len(open)+ownDescriptors
	if has(transport.Files) {
		each = 2 // and the file that a client has handed over
	}
	if has(transport.Datagram) {
		beside += echoserver.MaxNames
	}
	if c.Admin != nil {
		beside += adminConnections
	}
	most := max((int(min(limit.Cur, math.MaxInt32))-beside)/each-echoserver.HealthChecks, 1)
	if c.MaxConnections > most {
		log.Warn().Int("max_connections", most).Uint64("open_files", limit.Cur).
			Msgf("the limit of open files is %d: --max-connections is %d, not %d", limit.Cur, most, c.MaxConnections)
	}
	if c.MaxConnections == 0 {
		return most
	}
	return min(c.MaxConnections, most)
}

// maxPerUser is --max-per-user, or nine tenths of the connections that there
// may be in all, if those are limited.
func (c *serveCmd) maxPerUser(most int) int {
	switch {
	case c.MaxPerUser != nil:
		return *c.MaxPerUser
	case c.MaxConnections == 0:
		return 0
	}
	return most * 9 / 10
}

// startAdmin serves --admin until stop is called: also while the echoes under
// way run to their end.
func (c *serveCmd) startAdmin(ctx context.Context, stats *stats.Server, log zerolog.Logger) (stop func(), err error) {
	if c.Admin == nil {
		return func() {}, nil
	}
	a := &admin{
		addr: *c.Admin, config: transport.ListenConfig{Mode: 0o600},
		wait: c.Takeover, identity: c.Identity, stats: stats, started: time.Now(), log: log,
	}
	return a.start(context.WithoutCancel(ctx))
}

// sockets are those that the parent process has passed on or else those of
// --listen, with --takeover in a handover: all, or an error and those made so far.
func (c *serveCmd) sockets(config transport.ListenConfig) (sockets []*transport.Socket, _ *uds.Handover, _ error) {
	// systemd's protocol, sd_listen_fds(3). The variables must not reach children.
	if passed := activation.Files(true); len(passed) > 0 {
		for _, f := range passed {
			s, err := inherit(config, f)
			if err != nil {
				return sockets, nil, fmt.Errorf("%s, passed on by the parent process: %w", f.Name(), err)
			}
			sockets = append(sockets, s)
		}
		return sockets, nil, nil
	}
	if c.Takeover {
		return config.Handover(c.Listen...)
	}
	for _, a := range c.Listen {
		s, err := config.Listen(a)
		if err != nil {
			return sockets, nil, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil, nil
}

// absolute tells whether no path depends on the working directory.
func (c *serveCmd) absolute() bool {
	relative := func(a transport.Addr) bool { return a.Type.Unix() && !a.Abstract() && a.Path[0] != '/' }
	return !slices.ContainsFunc(c.Listen, relative) && (c.Admin == nil || !relative(*c.Admin))
}

func closeAll(sockets []*transport.Socket, h *uds.Handover) {
	if h != nil {
		h.Remove()
	}
	for _, s := range sockets {
		_ = s.Close()
	}
	if h != nil {
		h.Close()
	}
}

// inherit has a descriptor of its own: f closes the one that it has.
func inherit(config transport.ListenConfig, f *os.File) (*transport.Socket, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return config.Inherit(fd, f.Name() == string(transport.Files)) // FileDescriptorName=files in a systemd unit
}
