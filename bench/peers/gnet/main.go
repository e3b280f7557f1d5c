// Command gnet is an echo on a Unix stream socket with gnet's event loop.
package main

import (
	"log"
	"os"

	"github.com/panjf2000/gnet/v2"
)

type echo struct{ gnet.BuiltinEventEngine }

func (*echo) OnTraffic(c gnet.Conn) gnet.Action {
	buf, err := c.Next(-1)
	if err == nil {
		_, err = c.Write(buf)
	}
	if err != nil {
		return gnet.Close
	}
	return gnet.None
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: gnet PATH")
	}
	log.Fatal(gnet.Run(new(echo), "unix://"+os.Args[1]))
}
