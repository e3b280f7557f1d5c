package unixgrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Serve serves until ctx ends or another server has taken l over, see
// [uds.ListenConfig]. Then it serves the calls that have begun, for at most limit,
// and asks the clients to connect again (GOAWAY). The process can exit when it
// returns.
func Serve(ctx context.Context, server *grpc.Server, l net.Listener, limit time.Duration) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	counted := &listener{Listener: l}
	err := server.Serve(counted) // closes the listener too, so that the socket file is gone
	if !errors.Is(err, net.ErrClosed) {
		return err
	}
	ended := make(chan struct{})
	go func() {
		// GracefulStop closes a connection that is accepted and that gRPC has not
		// begun to read. A client may have sent a call on it.
		counted.unread.Wait()
		server.GracefulStop()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(limit): // not Stop, which waits for a connection that sends nothing
		return fmt.Errorf("there are still calls after %s", limit)
	}
}

type listener struct {
	net.Listener
	unread sync.WaitGroup // connections from which gRPC has not begun to read
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.unread.Add(1)
	return &connection{conn.(*net.UnixConn), sync.OnceFunc(l.unread.Done)}, nil
}

type connection struct {
	*net.UnixConn
	begun func()
}

func (c *connection) Read(p []byte) (int, error) { c.begun(); return c.UnixConn.Read(p) }
func (c *connection) Close() error               { c.begun(); return c.UnixConn.Close() }
