package inspect

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/udsecho/udsecho/internal/logtext"
)

// A Process has a socket open.
type Process struct {
	PID       int        `json:"pid"`
	Name      string     `json:"name"`
	UID       uint32     `json:"uid"`       // the effective one
	Container *Container `json:"container"` // nil outside of containers
}

// holders finds the processes that have sockets open: held has the numbers of
// the sockets as keys, and gets the processes. denied is the number of processes
// that this one may not look into.
func holders(held map[uint32][]*Process) (denied int, err error) {
	all, err := procfs.AllProcs()
	for _, proc := range all {
		// It needs the same permission as the targets of descriptors, which come
		// without an error, proc_pid_fd(5).
		if _, err := proc.Executable(); errors.Is(err, fs.ErrPermission) {
			denied++
			continue
		}
		open, _ := proc.FileDescriptorTargets() // none if it has ended
		var p *Process
		for _, target := range open {
			digits, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			number, _ := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 32)
			of, wanted := held[uint32(number)]
			if !wanted || p != nil && len(of) > 0 && of[len(of)-1] == p { // another descriptor of the same socket
				continue
			}
			if p == nil {
				if p = process(proc); p == nil {
					break
				}
			}
			held[uint32(number)] = append(of, p)
		}
	}
	return denied, err
}

// process returns nil if the process has ended.
func process(proc procfs.Proc) *Process {
	status, err := proc.NewStatus()
	if err != nil {
		return nil
	}
	p := &Process{PID: proc.PID, Name: logtext.Escape(status.Name), UID: uint32(status.UIDs[1])}
	groups, _ := proc.Cgroups()
	for _, g := range groups {
		if p.Container == nil {
			p.Container = containerOf(g.Path)
		}
	}
	return p
}
