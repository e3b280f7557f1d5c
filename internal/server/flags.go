package server

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
)

// ListenFlag defines where to listen, which a health check needs too.
type ListenFlag struct {
	Listen []addr.Addr `default:"stream:./uds_socket" placeholder:"ADDR" help:"Where to listen: stream:PATH (or just PATH), datagram:PATH, seqpacket:PATH, tcp:HOST:PORT, or files:PATH (server). A PATH of the form @NAME is an abstract name."`
}

// Validate rejects addresses that cannot be listened on together.
func (f *ListenFlag) Validate() error {
	seen := map[string]bool{}
	for _, a := range f.Listen {
		if seen[a.Path] { // with another type, too
			return fmt.Errorf("--listen %s: the path is given twice", a)
		}
		seen[a.Path] = true
	}
	if len(f.Listen) == 0 {
		return errors.New("--listen: no address; write stream:PATH")
	}
	return nil
}

// Warn logs a warning for addresses that are names in the network namespace.
func (f *ListenFlag) Warn(log zerolog.Logger) {
	var names []string
	for _, a := range f.Listen {
		if a.Abstract() {
			names = append(names, a.String())
		}
	}
	if names != nil {
		log.Warn().Msg(logtext.Escape(strings.Join(names, ", ")) + ": an abstract name belongs to the network namespace, so clients in other containers do not find it")
	}
}

// Mode is --mode, in octal.
type Mode fs.FileMode

// Exact returns the mode, and sets the umask to 0 if there is one: so bind(2)
// makes a file that has the mode from the moment it is there. Each other file
// that the server or the relay makes has a mode of its own. Package uds needs
// unshare(2) for the same, which many engines deny in containers. Without a
// mode the umask decides, and stays.
func (m Mode) Exact() fs.FileMode {
	if m != Mode(sock.DefaultMode) {
		unix.Umask(0)
	}
	return fs.FileMode(m)
}

// UnmarshalText is [cli.ParseMode].
func (m *Mode) UnmarshalText(text []byte) error {
	parsed, err := cli.ParseMode(string(text))
	*m = Mode(parsed)
	return err
}

// LimitFlags define which clients to serve, how many, and for how long.
type LimitFlags struct {
	Mode           Mode          `placeholder:"OCTAL" help:"Permission bits of the socket file; any process with write permission can connect (default: 0777 without the umask's bits)."`
	Backlog        int           `placeholder:"N" help:"Connections that may wait to be accepted (default: as many as the system allows)."`
	AllowUID       []uint32      `name:"allow-uid" placeholder:"UID" help:"Serve only clients of this user, or of a group of --allow-gid. The server's own user is always served (default: all clients that can connect)."`
	AllowGID       []uint32      `name:"allow-gid" placeholder:"GID" help:"Serve only clients whose effective group is this one, or whose user is one of --allow-uid (default: all clients that can connect)."`
	MaxConnections int           `default:"1000" placeholder:"N" help:"The largest number of open connections; 0: no limit. The limit of open files and the memory limit may allow fewer."`
	MaxPerUser     *int          `placeholder:"N" help:"The largest number of open connections of one user, so that one user cannot use them all; 0: no limit (default: nine tenths of --max-connections)."`
	IdleTimeout    time.Duration `default:"${idle}" placeholder:"DURATION" help:"Disconnect clients after this long without data; 0s: no limit."`
	DrainTimeout   time.Duration `default:"5s" placeholder:"DURATION" help:"How long clients may continue after SIGTERM or SIGINT; a second signal ends them at once."`
}

// Validate rejects numbers that make no sense, and flags about users with
// addresses whose clients have no user.
func (f *LimitFlags) Validate(listen []addr.Addr) error {
	switch {
	case f.Backlog < 0 || f.Backlog > 1<<16:
		return fmt.Errorf("--backlog %d: choose from 0 to %d connections", f.Backlog, 1<<16)
	case f.MaxPerUser != nil && *f.MaxPerUser < 0:
		return fmt.Errorf("--max-per-user %d: choose 0 for no limit, or more", *f.MaxPerUser)
	case f.MaxConnections < 0:
		return fmt.Errorf("--max-connections %d: choose 0 for no limit, or more", f.MaxConnections)
	case f.IdleTimeout < 0:
		return fmt.Errorf("--idle-timeout %v: choose 0s for no limit, or more", f.IdleTimeout)
	case f.DrainTimeout < 0:
		return fmt.Errorf("--drain-timeout %v: choose 0s or more", f.DrainTimeout)
	}
	for _, a := range listen {
		if !a.Type.Unix() && f.allow() != nil {
			return fmt.Errorf("--listen %s: --allow-uid and --allow-gid need a Unix socket; the kernel does not know the client's user on %s", a, a.Type)
		}
	}
	return nil
}

// allow returns the rule of --allow-uid and --allow-gid, nil if all clients
// may connect. It always admits the server's own user, which the health check
// has.
func (f *LimitFlags) allow() func(unix.Ucred) bool {
	if len(f.AllowUID)+len(f.AllowGID) == 0 {
		return nil
	}
	return func(cred unix.Ucred) bool {
		return sock.IsOwnUser(cred.Uid) || slices.Contains(f.AllowUID, cred.Uid) || slices.Contains(f.AllowGID, cred.Gid)
	}
}

// Config returns the server's configuration for these flags, and reserves room
// for its descriptors. Each connection uses each descriptors; in addition the
// process opens up to beside more. Each connection has a number of ends with a
// send buffer, of sendBuffer bytes, or with 0 of the system's default.
func (f *LimitFlags) Config(sockets []*addr.Socket, each, beside, ends, sendBuffer int, log zerolog.Logger) Config {
	beside += ownDescriptors
	if Has(sockets, addr.Datagram) {
		beside += MaxNames
	}
	most := f.maxConnections(each, beside, log)
	pool := f.memory(most, ends, cmp.Or(sendBuffer, sock.DefaultSendBuffer()), log)
	if pool != nil {
		most = max(pool.Most-HealthChecks, 1)
	}
	reserve(min((most+HealthChecks)*each+beside, 16_000)) // at most 128 KiB
	return Config{
		MaxConnections: most, MaxConnectionsPerUser: f.maxPerUser(most), Memory: pool,
		DrainTimeout: f.DrainTimeout, Allow: f.allow(), Log: log,
	}
}

// ownDescriptors are those that no connection uses and that are not open yet
// when a server starts.
const ownDescriptors = 16 // of the loop and of Go; while a socket is recreated; of a server that takes over

// CheckOpenFiles returns an error if the limit of open files is too low even
// for one connection beside the health checks.
func (f *LimitFlags) CheckOpenFiles(listen []addr.Addr) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil // maxConnections warns
	}
	open, _ := os.ReadDir("/proc/self/fd")
	// Each address has a socket and a lock.
	least := len(open) + 2*len(listen) + ownDescriptors + HealthChecks
	if limit.Cur > uint64(least) {
		return nil
	}
	return fmt.Errorf("the limit of open files is %d: raise it (ulimit -n) to %d, and by one or two more for each further connection", limit.Cur, least+1)
}

// maxConnections returns --max-connections, or less if the limit of open files
// does not allow as many. A server that could not accept would leave clients
// waiting silently, including its own health check. So a client that would
// need a missing descriptor is rejected as at any other limit, and the health
// check, the admin socket and the server's own work always find a descriptor.
// If the limit of open files is lowered later, clients wait until there are
// descriptors again.
func (f *LimitFlags) maxConnections(each, beside int, log zerolog.Logger) int {
	var limit unix.Rlimit
	open, err := os.ReadDir("/proc/self/fd")
	if err == nil {
		err = os.NewSyscallError("getrlimit", unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	}
	if err != nil {
		log.Warn().Err(err).Msgf("cannot find out how many connections the limit of open files allows: %s", logtext.Escape(err.Error()))
		return f.MaxConnections
	}
	most := max((int(min(limit.Cur, math.MaxInt32))-beside-len(open))/each-HealthChecks, 1)
	if f.MaxConnections > most {
		log.Warn().Int("max_connections", most).Uint64("open_files", limit.Cur).
			Msgf("the limit of open files is %d: --max-connections is %d, not %d", limit.Cur, most, f.MaxConnections)
	}
	if f.MaxConnections == 0 {
		return most
	}
	return min(f.MaxConnections, most)
}

// memory returns the pool of memory that connections share, and logs what was
// chosen. Without it, clients that send and never read would fill the memory of
// the server's container with their replies.
func (f *LimitFlags) memory(most, ends, sendBuffer int, log zerolog.Logger) *Pool {
	limit, source := MemoryLimit()
	pool := NewPool(limit, most+HealthChecks, ends, sendBuffer)
	if pool == nil {
		log.Warn().Msg("cannot find out how much memory this process may use: nothing bounds the send buffers of all connections together")
		return nil
	}
	log.Debug().Str("source", source).Int("limit", limit).Int("connections", most).Int("least_buffer", pool.Floor).Int("shared", pool.Size).
		Msgf("memory: the %s allows %d bytes: %s", source, limit, pool)
	if most > pool.Most-HealthChecks {
		log.Warn().Int("max_connections", pool.Most-HealthChecks).Int("limit", limit).
			Msgf("the memory limit is %d bytes: --max-connections is %d, not %d", limit, max(pool.Most-HealthChecks, 1), most)
	}
	return pool
}

// reserve makes the kernel's table of this process's descriptors large enough
// for n more. Otherwise it grows while clients connect, and a process of
// several threads waits milliseconds each time, in which a burst of clients
// fills the backlog.
func reserve(n int) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return // the server works without
	}
	defer func() { _ = unix.Close(fd) }()
	if last, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, fd+n); err == nil {
		_ = unix.Close(last)
	}
}

// maxPerUser returns --max-per-user, or nine tenths of the connection limit,
// if there is one.
func (f *LimitFlags) maxPerUser(most int) int {
	switch {
	case f.MaxPerUser != nil:
		return *f.MaxPerUser
	case f.MaxConnections == 0:
		return 0
	}
	return most * 9 / 10
}

// Has reports whether one of the sockets is of a type.
func Has(sockets []*addr.Socket, t addr.Type) bool {
	return slices.ContainsFunc(sockets, func(s *addr.Socket) bool { return s.Addr.Type == t })
}

// Sockets returns the sockets that the parent process has passed on. If it
// passed none, Sockets makes those of addrs, with takeover in a handover. It
// returns all, or an error and the sockets made so far.
func Sockets(config sock.ListenConfig, addrs []addr.Addr, takeover bool) (sockets []*addr.Socket, _ *sock.Handover, _ error) {
	// systemd's protocol, sd_listen_fds(3). Children must not inherit the
	// variables.
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
	if takeover {
		return addr.Handover(config, addrs...)
	}
	for _, a := range addrs {
		s, err := addr.Listen(config, a)
		if err != nil {
			return sockets, nil, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil, nil
}

// CloseSockets closes the sockets that [Sockets] has returned.
func CloseSockets(sockets []*addr.Socket, h *sock.Handover) {
	if h != nil {
		h.Leave()
	}
	for _, s := range sockets {
		_ = s.Close()
	}
	if h != nil {
		h.Close()
	}
}

// inherit makes a socket of a descriptor of the parent process. It uses a
// duplicate, because f closes its own.
func inherit(config sock.ListenConfig, f *os.File) (*addr.Socket, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	sock.DropAncillary(fd)
	s, err := config.Inherit(fd)
	if err != nil {
		return nil, err
	}
	a := addr.Addr{Type: addr.Type(s.Addr().Type), Path: s.Addr().Path}
	if a.Type == addr.Seqpacket && f.Name() == string(addr.Files) { // FileDescriptorName=files in a systemd unit
		a.Type = addr.Files
	}
	return &addr.Socket{Addr: a, Bound: s}, nil
}
