//go:build !linux

// Command server runs on Linux. On other systems it prints that, because
// package unix does not have the needed names there.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "server: needs Linux, whose epoll, SO_PEERCRED and abstract names it uses, and this is %s; run it in a container: docker compose up\n", runtime.GOOS)
	os.Exit(1)
}
