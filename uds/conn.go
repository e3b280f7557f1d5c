package uds

import (
	"context"
	"net"
	"os"
	"syscall"

	"github.com/udsecho/udsecho/uds/sock"
)

// Dial connects to a Unix socket, as [net.Dial] does: network is "unix",
// "unixpacket" or "unixgram". The connection is a *[net.UnixConn]. The error
// contains the kernel's errno and names the cure:
//
//	ENOENT, ECONNREFUSED  no server is there, see [NotThereYet]
//	EAGAIN                the server's backlog is full; connect(2) does not wait for it
//	EACCES                no write permission on the socket file
//	EPROTOTYPE            the socket is of another type
func Dial(network, address string) (net.Conn, error) {
	return Dialer{}.Dial(network, address)
}

// A Dialer configures how to connect. Its zero value works.
type Dialer struct {
	// Name is the client's own address, a path or an abstract name, with which
	// the server can distinguish clients and answer datagrams. The connection is
	// a *[Conn] then. See [AutoName]. Empty means none.
	Name string
	// Control is called with the socket before it is bound or connected, as
	// that of [net.Dialer].
	Control func(network, address string, c syscall.RawConn) error
}

// Dial is [Dial] with this configuration.
func (d Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialContext is Dial with a context. Once connected, ctx does not affect the
// connection.
func (d Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	path, err := where(address)
	switch network {
	case "unix", "unixgram", "unixpacket":
	default:
		err = unknown(network, "unix, unixgram or unixpacket")
	}
	if err == nil {
		var c net.Conn
		if c, err = d.dial(ctx, network, path); err == nil {
			return c, nil
		}
	}
	err = opError("dial", network, address, err)
	if op, ok := err.(*net.OpError); ok && d.Name != "" {
		op.Source = &net.UnixAddr{Name: d.Name, Net: network}
	}
	return nil, err
}

// A Conn is the connection of a client that has a name of its own, see
// [Dialer]. It is a *[net.UnixConn] whose Close also removes the file of that
// name.
type Conn struct {
	*net.UnixConn
	close func() error
}

// Close closes the connection and removes the file of the client's name, if it
// is still the one that the client made.
func (c *Conn) Close() error { return c.close() }

// AutoName returns a name for the client's own socket that no other client
// has: a path in directory dir, or an abstract name if dir is "@". The process
// id alone is not unique, because every client is process 1 of its container;
// so the name also contains the host name and a random part.
func AutoName(dir string) string { return sock.AutoName(dir) }

// NotThereYet reports whether a dial failed with err because the server may
// still be starting or may be briefly busy: its path is missing or stale, its
// socket does not listen yet, or its backlog is full. On Linux EACCES counts
// too if the file has changed within the last second, as its server may be
// setting its mode and owner.
func NotThereYet(err error) bool { return notThereYet(err) }

// Cred are the credentials of a process, as the kernel reports them.
type Cred struct {
	UID int // its effective user, as [os.Geteuid]
	GID int // its effective group
	PID int // its process id as seen from here; 0 if it has none here, or if the system does not report it
}

// PeerCred returns the credentials of the process that made the other end of a
// connection, unix(7), SO_PEERCRED: for a server the client, and for a client
// the process that called listen(2) last. They are those of the moment when it
// connected or listened. Connections of *[tls.Conn] and others with a NetConn
// method are unwrapped.
//
// Datagram sockets have no peer credentials, see [PacketConn.ReadFromCred]; on
// Linux all are -1 there.
//
// [tls.Conn]: https://pkg.go.dev/crypto/tls#Conn
func PeerCred(c net.Conn) (Cred, error) { return peerCred(c) }

// Pair makes two connected stream sockets without an address, socketpair(2):
// one for this process, the other for a child to inherit through
// exec.Cmd.ExtraFiles. Close the other one once the child has started,
// otherwise this process never reads end of file.
func Pair() (own *net.UnixConn, other *os.File, err error) { return pair() }

// SendFiles sends b and copies of open files over a connection, unix(7),
// SCM_RIGHTS. The receiver gets them with the first byte of b, so b must not be
// empty. At most 253 files. The sender may close its own at once. It waits as
// Write does, with its deadline.
func SendFiles(c net.Conn, b []byte, files ...*os.File) error { return sendFiles(c, b, files) }

// ReceiveFiles receives a message into buf, and with it at most limit files,
// which are close-on-exec; the caller closes them. It waits as Read does, with
// its deadline, on any connection, accepted or dialled. From a stream it reads
// what is there, up to the end of buf or to the next files.
//
// The error is io.EOF at the end of the connection, [ErrDescriptors] if more
// than limit files came, [ErrTruncated] if a message is larger than buf, or
// [ErrOpenFiles]. With an error no file stays open. Read and other methods of
// package net close files that they receive.
func ReceiveFiles(c net.Conn, buf []byte, limit int) (n int, files []*os.File, err error) {
	return receiveFiles(c, buf, limit)
}
