// Command netpoll is an echo server on a Unix stream socket, with cloudwego's
// netpoll.
package main

import (
	"context"
	"log"
	"os"

	"github.com/cloudwego/netpoll"
)

func echo(_ context.Context, c netpoll.Connection) error {
	r, w := c.Reader(), c.Writer()
	buf, err := r.Next(r.Len())
	if err != nil {
		return err
	}
	if _, err := w.WriteBinary(buf); err != nil {
		return err
	}
	// Before Release, as the writer may refer to the bytes read.
	if err := w.Flush(); err != nil {
		return err
	}
	return r.Release()
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: netpoll PATH")
	}
	l, err := netpoll.CreateListener("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	loop, err := netpoll.NewEventLoop(echo)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(loop.Serve(l))
}
