// Client calls the server over its Unix socket:
//
//	client          asks the server who this process is
//	client health   exits with 0 if the server serves: for a health check
//	client load     asks without pause until it is stopped, and counts
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/udsecho/udsecho/examples/grpc/unixgrpc"
	"github.com/udsecho/udsecho/examples/grpc/whoami"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("client: ")
	path := flag.String("connect", "/run/grpc/socket", "absolute `path` of the server's socket")
	server := flag.Int("require", 10001, "`uid` of the server")
	timeout := flag.Duration("timeout", 5*time.Second, "how long a call may take")
	flag.Parse()

	conn, err := grpc.NewClient("unix://"+*path, unixgrpc.Require(*server),
		// Connecting to a socket is cheap to try. By default two attempts are up to
		// 2 minutes apart. Without a MinConnectTimeout an attempt may take as long
		// as the delay only.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// While no server is there a call waits until its deadline, which every
		// call needs for this. Otherwise it fails at once.
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		log.Fatal(err)
	}
	if err := run(conn, flag.Arg(0), *timeout); err != nil {
		log.Fatal(err)
	}
}

func run(conn *grpc.ClientConn, command string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch command {
	case "":
		answer, err := whoami.Ask(ctx, conn)
		if err != nil {
			return err
		}
		fmt.Println(answer)
		return nil
	case "health":
		answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, new(grpc_health_v1.HealthCheckRequest), grpc.WaitForReady(false))
		if err == nil && answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			err = fmt.Errorf("the server is %s", answer.Status)
		}
		return err
	case "load":
		return load(conn, timeout)
	default:
		return fmt.Errorf("unknown command %q: the commands are health and load", command)
	}
}

// load prints each answer when it first comes.
func load(conn *grpc.ClientConn, timeout time.Duration) error {
	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var (
		mu            sync.Mutex
		calls, failed int
		seen          = map[string]bool{}
		callers       sync.WaitGroup
	)
	for range 8 {
		callers.Go(func() {
			for stopped.Err() == nil {
				ctx, cancel := context.WithTimeout(context.Background(), timeout)
				answer, err := whoami.Ask(ctx, conn)
				cancel()
				mu.Lock()
				calls++
				if err != nil {
					failed++
					answer = err.Error()
				}
				if !seen[answer] {
					seen[answer] = true
					fmt.Println(answer)
				}
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	fmt.Printf("%d calls, %d failed\n", calls, failed)
	return nil
}
