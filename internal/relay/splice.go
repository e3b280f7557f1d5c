package relay

import "golang.org/x/sys/unix"

// A pipe moves bytes from TCP to the other socket without copying them through
// this process, splice(2). It is used for TCP only: from a Unix socket, splice
// would close the descriptors of a message silently.
type pipe struct {
	fds  [2]int // read end, write end
	held int    // bytes in it
}

// Pipes use descriptors, so their number is limited; without a pipe, bytes are
// copied.
const (
	MaxPipes = 16
	pipeSize = 256 << 10
)

// takePipe returns an empty pipe, nil if the limit is reached.
func (r *Relay) takePipe() *pipe {
	if n := len(r.pipes); n > 0 {
		p := r.pipes[n-1]
		r.pipes = r.pipes[:n-1]
		return p
	}
	p := new(pipe)
	if r.madePipes >= MaxPipes || unix.Pipe2(p.fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	r.madePipes++
	_, _ = unix.FcntlInt(uintptr(p.fds[0]), unix.F_SETPIPE_SZ, pipeSize) // if this fails, the system's size stays
	return p
}

// givePipe takes a pipe back, and closes one that is not empty.
func (r *Relay) givePipe(p *pipe) {
	if p.held == 0 {
		r.pipes = append(r.pipes, p)
		return
	}
	p.close()
	r.madePipes--
}

func (p *pipe) close() {
	_ = unix.Close(p.fds[0])
	_ = unix.Close(p.fds[1])
}

// spliced forwards the received bytes, and reports whether there may be more.
// It does not notice an end or an error; the next receive does.
func (e *end) spliced() bool {
	r := e.link.relay
	if e.pipe = r.takePipe(); e.pipe == nil {
		return false
	}
	n, err := unix.Splice(e.fd, nil, e.pipe.fds[1], nil, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	if err != nil || n <= 0 {
		e.forget()
		return false
	}
	e.pipe.held = int(n)
	e.bytes += uint64(n)
	return e.flush()
}
