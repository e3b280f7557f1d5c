//go:build !linux

// Command uds runs on Linux. On other systems it prints that, because
// package unix does not have the needed names there.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "uds: needs Linux, whose sock_diag and /proc it uses, and this is %s; run it in a container of the machine that has the sockets\n", runtime.GOOS)
	os.Exit(1)
}
