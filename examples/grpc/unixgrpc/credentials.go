// Package unixgrpc is what gRPC needs over a Unix socket, to be copied: who is at
// the other end, as the kernel reports it, and an end that loses no call.
package unixgrpc

import (
	"context"
	"fmt"
	"net"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/udsecho/udsecho/uds"
)

// Permit returns the options of a server that serves these users. A call of
// another user fails with [codes.PermissionDenied].
func Permit(uids ...int) []grpc.ServerOption {
	check := func(ctx context.Context) error {
		if cred, ok := Caller(ctx); !ok || !slices.Contains(uids, cred.UID) {
			return status.Errorf(codes.PermissionDenied, "uid %d is not permitted", cred.UID)
		}
		return nil
	}
	return []grpc.ServerOption{
		grpc.Creds(transport{}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := check(ctx); err != nil {
				return nil, err
			}
			return next(ctx, in)
		}),
		grpc.ChainStreamInterceptor(func(s any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := check(stream.Context()); err != nil {
				return err
			}
			return next(s, stream)
		}),
	}
}

// Caller returns the credentials of the process that makes the call, in a handler
// of a server with [Permit].
func Caller(ctx context.Context) (cred uds.Cred, ok bool) {
	if p, found := peer.FromContext(ctx); found {
		if auth, unix := p.AuthInfo.(authInfo); unix {
			return auth.cred, true
		}
	}
	return uds.Cred{UID: -1, GID: -1}, false
}

// Require returns the option of a client that connects to a server of one of these
// users only.
func Require(uids ...int) grpc.DialOption {
	return grpc.WithTransportCredentials(transport{uids})
}

// transport asks the kernel, where TLS would exchange certificates. gRPC calls it
// when it has a connection.
type transport struct{ servers []int }

type authInfo struct {
	credentials.CommonAuthInfo
	cred uds.Cred
}

func (authInfo) AuthType() string { return "unix" }

// ServerHandshake reads who has connected.
func (transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cred, err := uds.PeerCred(conn)
	// No other process reads or changes what goes through a Unix socket.
	return conn, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, cred}, err
}

// ClientHandshake reads who listens.
func (t transport) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, auth, err := t.ServerHandshake(conn)
	if uid := auth.(authInfo).cred.UID; err == nil && !slices.Contains(t.servers, uid) {
		err = fmt.Errorf("the server runs as uid %d, not as one of %v", uid, t.servers)
	}
	return conn, auth, err
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName has nothing to override: a Unix socket has no host name.
func (transport) OverrideServerName(string) error { return nil }
