package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// A direction delivers to one end what the other end sends. It keeps what it has
// received until the receiver has accepted all of it, and receives nothing
// meanwhile.
type direction struct {
	link     *link
	from, to *end
	state    state

	rest  []byte         // received and not accepted yet
	buf   *[bufSize]byte // the buffer that rest is part of; nil if rest is a copy
	pipe  *pipe          // in place of rest; nil if there is none
	bulk  bool           // much data is waiting, and no other than bytes
	files []int          // descriptors that belong to rest, see descriptors.go
	kept  int            // what rest takes of the memory, see room.go

	flying int    // descriptors that were sent, and may not be received yet
	bytes  uint64 // received
	lost   uint64 // of these, and of what was left in the kernel: not delivered
}

// A state is what a direction does now, or waits for.
type state uint8

const (
	flowing state = iota // it receives
	starved              // it tries to receive again after a pause, see room.go
	blocked              // the receiver does not accept the rest now
	crowded              // it tries to send the rest again after a pause, as too many descriptors are in flight
	ended                // the receiver knows that nothing more comes; what TCP still sends is thrown away
)

// pending reports whether something was received that the receiver has not
// accepted.
func (d *direction) pending() bool { return d.state == blocked || d.state == crowded }

// receives reports whether the direction handles what its sender sends now.
func (d *direction) receives() bool {
	return !d.from.eof && (d.state == flowing || d.state == ended)
}

// receive forwards the received bytes, up to a limit, so that the other
// connections get their turn.
func (d *direction) receive() {
	l, from := d.link, d.from
	for range maxTurn {
		if !d.makeRoom() || !d.mayReceive() {
			return
		}
		n, err := d.read()
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case err == unix.ECONNRESET && from.unix:
			// It has closed without reading all, and what it has sent is still
			// here: of records the kernel reports this first, of a stream last.
			l.info().Msg("the " + from.name + " closed its socket without reading everything")
			continue
		case err == io.EOF:
			from.eof = true
			return
		case unwanted(err):
			l.refuse("the " + from.name + "'s " + err.Error())
			return
		case err != nil:
			l.lost(from, err)
			return
		}
		l.still = 0
		if d.state == ended {
			d.lost += uint64(n)
			d.rest = nil
			continue
		}
		d.bytes += uint64(n)
		l.record.Data(d == &l.toTarget, d.rest, d.files)
		if d.files != nil {
			if d.relieve(); l.closed {
				return
			}
		}
		if !d.flush() || !l.records && n < d.limit() {
			return
		}
	}
}

// read receives into rest, which is the relay's buffer then, or into a pipe, and
// descriptors into files. The error is io.EOF at the end.
func (d *direction) read() (n int, err error) {
	r, l, fd := d.link.relay, d.link, d.from.fd
	if d.bulk && d.state == flowing {
		if n, err := d.splice(); n > 0 || err != nil {
			d.bulk = err != nil || n > bufSize/8 // less is copied as fast
			return n, err
		}
	}
	switch {
	case r.config.PassFiles && d.from.unix && !l.records:
		n, d.files, err = r.placer.receive(fd, r.buf)
	case d.from.rights: // without room for descriptors, the kernel would close them here
		n, d.files, _, err = sock.ReceiveFiles(fd, r.buf, sock.MaxRights)
	case l.records:
		n, _, _, err = sock.ReceiveFiles(fd, r.buf, 0)
	default:
		n, err = raw.Read(fd, r.buf[:d.limit()])
		d.bulk = n == d.limit() && l.record == nil
	}
	if d.files != nil {
		r.files.add(l.conn.UID, len(d.files))
		if !r.config.PassFiles {
			d.closeFiles()
			return 0, errDescriptors
		}
	}
	if err == nil && n == 0 && !l.records {
		err = io.EOF
	}
	if err == nil {
		d.rest = r.buf[:n]
	}
	return n, err
}

var errDescriptors = fmt.Errorf("%w; --pass-files passes descriptors on", sock.ErrDescriptors)

// flush sends the rest, and reports whether all of it is sent.
func (d *direction) flush() bool {
	l := d.link
	for {
		n, err := d.send()
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			d.keep()
			d.state = blocked
			return false
		case errors.Is(err, unix.ETOOMANYREFS):
			d.keep()
			d.park(crowded)
			return false
		case err != nil:
			if err != unix.EPIPE && err != unix.ECONNRESET {
				l.refuse(escape(fmt.Errorf("send to the %s: %w", d.to.name, sock.ExplainSize(d.to.fd, d.unsent(), err))))
			} else if !d.to.unix {
				d.to.broken, l.reset = true, true
			}
			d.drop(err)
			return false
		}
		l.still = 0
		d.closeFiles()
		if d.pipe != nil {
			d.pipe.held -= n
		} else {
			d.rest = d.rest[n:]
		}
		if d.unsent() == 0 {
			d.forget()
			d.state = flowing
			return true
		}
	}
}

// send sends the rest, with its descriptors if there are any. A stream may
// accept only a part of the bytes, but then it has accepted all descriptors.
func (d *direction) send() (int, error) {
	switch {
	case d.pipe != nil:
		n, err := unix.Splice(d.pipe.fds[0], nil, d.to.fd, nil, d.pipe.held, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		return int(n), err
	case d.files != nil:
		return d.sendFiles()
	}
	return raw.Send(d.to.fd, d.rest)
}

// unsent returns how many bytes of what was received are not sent.
func (d *direction) unsent() int {
	if d.pipe != nil {
		return d.pipe.held
	}
	return len(d.rest)
}

// keep keeps the rest, which is in the relay's buffer, until it is sent: a small
// one as a copy, a large one with the buffer, unless memory is short.
func (d *direction) keep() {
	if d.pending() || d.pipe != nil {
		return // is kept already
	}
	r := d.link.relay
	if d.to.buffer > 0 || len(d.rest) <= bufSize/8 || len(r.buf) != bufSize {
		d.rest = bytes.Clone(d.rest)
	} else {
		d.buf = (*[bufSize]byte)(r.buf)
		r.buf = r.free.Get().(*[bufSize]byte)[:]
	}
	if d.to.buffer > 0 && (d.link.records || r.config.PassFiles) { // there is room for it, see makeRoom
		d.kept = server.Kept(len(d.rest))
		r.srv.Memory.Keep(d.link.conn.UID, d.kept)
	}
}

// forget gives back all that the rest takes.
func (d *direction) forget() {
	r := d.link.relay
	d.closeFiles()
	r.srv.Memory.Keep(d.link.conn.UID, -d.kept)
	if d.buf != nil {
		r.free.Put(d.buf)
	}
	if d.pipe != nil {
		r.givePipe(d.pipe)
	}
	d.rest, d.buf, d.pipe, d.kept = nil, nil, nil, 0
}

// end ends the direction, in the record too.
func (d *direction) end() {
	d.state = ended
	d.link.record.End(d == &d.link.toTarget)
}

// drop gives up one direction because its receiver takes nothing more. The
// opposite direction continues.
func (d *direction) drop(err error) {
	lost := d.unsent()
	d.forget()
	d.state = ended
	if d.from.unix && !d.from.eof {
		d.from.stop()
		if left, err := unix.IoctlGetInt(d.from.fd, unix.SIOCINQ); err == nil { // nothing more comes
			lost += left
		}
	}
	d.lost += uint64(lost)
	if lost > 0 { // otherwise it is how most connections end
		d.link.info().Err(err).Int("bytes", lost).Msgf("the %s accepts nothing more: %s", d.to.name, escape(err))
	}
}

// A pipe moves bytes from socket to socket without copying them through this
// process, splice(2). It is not used where descriptors may come along: splice
// would close them silently.
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

// splice receives into a pipe. It returns 0 if there is no pipe or nothing to
// receive, as at the end, and if the kernel cannot (EINVAL): read(2) finds out.
func (d *direction) splice() (int, error) {
	r := d.link.relay
	p := r.takePipe()
	if p == nil {
		return 0, nil
	}
	n, err := unix.Splice(d.from.fd, nil, p.fds[1], nil, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	if n > 0 {
		p.held, d.pipe = int(n), p
		return p.held, nil
	}
	r.givePipe(p)
	if err == unix.EINVAL {
		err = nil
	}
	return 0, err
}

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
