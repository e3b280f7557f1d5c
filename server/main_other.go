//go:build !linux

// Command server runs on Linux; elsewhere it says so, and is not a page of
// names that package unix does not have there.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "server: needs Linux, whose epoll, SO_PEERCRED and abstract names it uses, and this is %s: run it in a container: docker compose up\n", runtime.GOOS)
	os.Exit(1)
}
