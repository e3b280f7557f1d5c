// Command cluster runs the stack of deploy/swarm.yaml on several nodes of one
// machine: a Docker Engine for each, in namespaces of its own, joined to one
// swarm.
//
//	cluster [demo] [--nodes N]
//
// It needs root, and runs from the top of the repository. Everything that it
// starts is in a PID namespace, everything that it mounts in a mount
// namespace, every link in a network namespace. All of it ends with its own
// process, even if that process is killed.
package main

import (
	"os"
	"syscall"

	"github.com/udsecho/udsecho/internal/cli"
)

type commands struct {
	Demo demoCmd `cmd:"" default:"withargs" help:"Deploy, update and kill an engine under load, and print which server echoed which client. This is the default."`
	Node nodeCmd `cmd:"" hidden:"" help:"Process 1 of a node."`
}

func main() {
	os.Exit(cli.Main("cluster", "Run the stack on several nodes of this machine.", &commands{},
		[]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}))
}
