//go:build linux

// Crowd is what the tests run as other users, in containers and beside them:
//
//	crowd flood NETWORK PATH CLIENTS   clients that send all that is taken, and never read
//	crowd files PATH CLIENTS           the same, with a file to read in each message
//	crowd echo NETWORK PATH            one echo after the other
//
// NETWORK is unix or unixpacket. It prints "ready" once all clients have sent
// what they can, or the first echo has come; at SIGTERM it prints what it
// counted, and ends with status 0. A connection that ends is made again. It is
// static, so that it runs in every image.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/udsecho/udsecho/uds/sock"
)

// A message is as long as the server's chunk: of the messages that fill a
// buffer, short ones cost the kernel the most beside their bytes.
const message = "0123456789abcdef"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "crowd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "flood":
		return crowd(ctx, args[1], args[2], args[3], func(c *sock.Conn) error {
			_, err := io.WriteString(c, message)
			return err
		})
	case len(args) == 3 && args[0] == "files":
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			return err
		}
		return crowd(ctx, "unixpacket", args[1], args[2], func(c *sock.Conn) error {
			return c.SendFiles([]byte("sum 1"), int(self.Fd()))
		})
	case len(args) == 3 && args[0] == "echo":
		return echo(ctx, args[1], args[2])
	}
	return fmt.Errorf("unknown arguments %q", args)
}

// crowd is clients that call send without an end.
func crowd(ctx context.Context, network, path, clients string, send func(*sock.Conn) error) error {
	n, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	var messages, ended atomic.Int64
	var stuck, all sync.WaitGroup
	stuck.Add(n)
	for range n {
		all.Go(func() {
			full := sync.OnceFunc(stuck.Done)
			defer full()
			for ctx.Err() == nil {
				if conn, err := net.Dial(network, path); err == nil {
					c := &sock.Conn{Conn: conn}
					for ctx.Err() == nil {
						_ = c.SetWriteDeadline(time.Now().Add(time.Second))
						if err = send(c); err == nil {
							messages.Add(1)
							continue
						}
						full()
						if !errors.Is(err, os.ErrDeadlineExceeded) {
							ended.Add(1)
							break
						}
					}
					_ = conn.Close()
				} else if !errors.Is(err, syscall.EAGAIN) { // which is a full backlog
					full()
				}
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	stuck.Wait()
	fmt.Println("ready")
	all.Wait()
	fmt.Printf("%d messages taken, %d connections ended\n", messages.Load(), ended.Load())
	return nil
}

// echo asks in turns over a connection that stays and over a new one.
func echo(ctx context.Context, network, path string) error {
	dial := func() (net.Conn, error) {
		conn, err := net.Dial(network, path)
		for ; errors.Is(err, syscall.EAGAIN) && ctx.Err() == nil; conn, err = net.Dial(network, path) {
			time.Sleep(time.Millisecond) // the backlog is full
		}
		return conn, err
	}
	stays, err := dial()
	if err != nil {
		return err
	}
	var took []time.Duration
	for len(took) < 2 || ctx.Err() == nil {
		began := time.Now()
		conn := stays
		if len(took)%2 == 1 {
			if conn, err = dial(); err != nil {
				return fmt.Errorf("after %d echoes: %w", len(took), err)
			}
		}
		// Only whether the echo comes is judged.
		got, err := make([]byte, len(message)), conn.SetDeadline(began.Add(time.Minute))
		if err == nil {
			_, err = io.WriteString(conn, message)
		}
		if err == nil {
			_, err = io.ReadFull(conn, got)
		}
		if err != nil || string(got) != message {
			return fmt.Errorf("after %d echoes: got %q, %w", len(took), got, err)
		}
		if took = append(took, time.Since(began)); len(took) == 2 {
			fmt.Println("ready")
		}
		if conn != stays {
			_ = conn.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	slices.Sort(took)
	fmt.Printf("%d echoes, p99 %v\n", len(took), took[len(took)*99/100].Round(time.Microsecond))
	return nil
}
