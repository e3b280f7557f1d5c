// Server is a gRPC server on a Unix socket. It serves the users whom it permits,
// until it is stopped or another one takes over.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/udsecho/udsecho/examples/grpc/unixgrpc"
	"github.com/udsecho/udsecho/examples/grpc/whoami"
	"github.com/udsecho/udsecho/uds"
)

// name is the container's, in a container.
type server struct{ name string }

func (s server) Ask(ctx context.Context, _ *emptypb.Empty) (*wrapperspb.StringValue, error) {
	caller, _ := unixgrpc.Caller(ctx)
	return wrapperspb.String(fmt.Sprintf("uid %d, gid %d; served by %s", caller.UID, caller.GID, s.name)), nil
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("server: ")
	host, _ := os.Hostname()
	path := flag.String("listen", "/run/grpc/socket", "`path` of the socket")
	name := flag.String("name", host, "what it calls itself")
	limit := flag.Duration("limit", 5*time.Second, "how long calls have at the end")
	var permitted []int
	flag.Func("permit", "`uid` of a client; repeat for more", func(s string) error {
		uid, err := strconv.Atoi(s)
		permitted = append(permitted, uid)
		return err
	})
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *path, server{*name}, *limit, permitted)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, path string, s server, limit time.Duration, permitted []int) error {
	// Any process of the group can connect; whose call is served, Permit decides.
	l, err := uds.ListenConfig{Mode: 0o660, Takeover: true}.Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	g := grpc.NewServer(unixgrpc.Permit(permitted...)...)
	whoami.Register(g, s)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	log.Printf("%s serves unix://%s", s.name, path)
	return unixgrpc.Serve(ctx, g, l, limit)
}
