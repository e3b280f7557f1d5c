// Server receives 16 bytes at a time and sends them back, to one client after
// another. It is the smallest server of package uds. The comments name the
// system calls.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/udsecho/udsecho/uds"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := serve(ctx, "./uds_socket")
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, path string) error {
	fmt.Println("starting up on", path)
	listener, err := uds.Listen("unix", path) // unlink(2) of a stale file, socket(2), bind(2), listen(2)
	if err != nil {
		return err
	}
	defer listener.Close()                              // close(2), unlink(2)
	context.AfterFunc(ctx, func() { listener.Close() }) // so that Ctrl-C ends Accept
	for {
		fmt.Println("waiting for a connection")
		connection, err := listener.Accept() // accept4(2)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Println("connection from")
		if err := echo(ctx, connection); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// echo serves a client until the client ends its side of the connection.
func echo(ctx context.Context, connection net.Conn) error {
	defer connection.Close()                                      // close(2)
	defer context.AfterFunc(ctx, func() { connection.Close() })() // so that Ctrl-C ends Read
	chunk := make([]byte, 16)
	for {
		n, err := connection.Read(chunk) // read(2), which returns 0 at the end
		if err != nil && err != io.EOF {
			return err
		}
		fmt.Println("received", quote(chunk[:n]))
		if n == 0 {
			fmt.Println("no data from")
			return nil
		}
		fmt.Println("sending data back to the client")
		if _, err := connection.Write(chunk[:n]); err != nil { // write(2), until all is sent
			return err
		}
	}
}

// quote escapes what is not printable ASCII, so that a client cannot write
// control characters to the terminal.
func quote(b []byte) string {
	quoted := strconv.QuoteToASCII(string(b))
	return "'" + quoted[1:len(quoted)-1] + "'"
}
