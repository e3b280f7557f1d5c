package uds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/udsecho/udsecho/uds/sock"
)

// Listen listens on a Unix socket, as [net.Listen] does: network is "unix" or
// "unixpacket". It replaces a stale socket file, and fails with [ErrInUse] if
// a server runs at the address and with [ErrNotSocket] if another file is
// there. The listener is a *[Listener].
func Listen(network, address string) (net.Listener, error) {
	return ListenConfig{}.Listen(context.Background(), network, address)
}

// ListenPacket is Listen for datagrams: network is "unixgram". The connection
// is a *[PacketConn].
func ListenPacket(network, address string) (net.PacketConn, error) {
	return ListenConfig{}.ListenPacket(context.Background(), network, address)
}

// A ListenConfig configures how to listen. Its zero value works.
type ListenConfig struct {
	// Mode is the socket file's permission bits; 0 leaves them to the umask.
	// Any process with write permission can connect, unix(7), "Pathname socket
	// ownership and permissions". Elsewhere than on Linux, the file has the
	// umask's mode for a moment.
	Mode fs.FileMode
	// Backlog is the number of connections that may wait to be accepted,
	// listen(2); 0 means as many as the system allows. Other systems than
	// Linux ignore it.
	Backlog int
	// Takeover takes the socket over from the server that runs at the address,
	// and hands it over to the next one, if all are configured so, and run as
	// one user or as root. The socket is never closed meanwhile, so no client
	// is refused. The old server's Accept then returns [net.ErrClosed], while
	// its connections stay: serve them to their end. Until the new server has
	// the socket, the old one continues if either of them fails. Paths only.
	Takeover bool
	// Renew recreates the socket file if it was removed; the listener looks
	// about once a second. If another socket or file is there by then, Accept
	// returns [ErrInUse] or [ErrNotSocket]. Clients that had connected are not
	// affected. Only for Listen, on Linux.
	Renew bool
	// Renewed, if not nil, is called after Renew has recreated the file, or with
	// the reason why it cannot now and will try again. It must not close the
	// listener, which waits for it.
	Renewed func(error)
	// Control is called with the socket before it is bound, as that of
	// [net.ListenConfig], and with a socket that is taken over.
	Control func(network, address string, c syscall.RawConn) error
}

// Listen is [Listen] with this configuration. When ctx ends, so does the wait
// for a server that hands over, and Listen returns the error of ctx. Once Listen
// has returned, ctx does not affect the listener.
func (c ListenConfig) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := c.open(ctx, network, address)
	if err != nil {
		return nil, opError("listen", network, address, err)
	}
	return l, nil
}

func (c ListenConfig) open(ctx context.Context, network, address string) (*Listener, error) {
	if network != "unix" && network != "unixpacket" {
		return nil, unknown(network, "unix or unixpacket; unixgram is for ListenPacket")
	}
	path, err := where(address)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if c.Takeover && sock.IsAbstract(path) {
		return nil, fmt.Errorf("only a path can be taken over, not an abstract name: %w", errors.ErrUnsupported)
	}
	return c.listen(ctx, network, path)
}

// ListenPacket is [ListenPacket] with this configuration. Takeover and Renew
// are [errors.ErrUnsupported].
func (c ListenConfig) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	p, err := c.openPacket(ctx, network, address)
	if err != nil {
		return nil, opError("listen", network, address, err)
	}
	return p, nil
}

func (c ListenConfig) openPacket(ctx context.Context, network, address string) (*PacketConn, error) {
	if network != "unixgram" {
		return nil, unknown(network, "unixgram; unix and unixpacket are for Listen")
	}
	path, err := where(address)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if c.Takeover || c.Renew {
		return nil, fmt.Errorf("ListenPacket with Takeover or Renew: %w", errors.ErrUnsupported)
	}
	return c.listenPacket(ctx, path)
}

func unknown(network, cure string) error {
	return fmt.Errorf("%w: choose %s", net.UnknownNetworkError(network), cure)
}
