package echo

import (
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/uds"
)

// acceptPause is how long a server that has run out of descriptors waits for
// some to be closed: without it, it would fail to accept in a busy loop.
const acceptPause = 100 * time.Millisecond

// A listener accepts connections.
type listener struct {
	*server
	socket *uds.Socket
}

func (ln *listener) ready() { ln.accept(64) }

func (ln *listener) acceptAll() { ln.accept(-1) }

// accept accepts who has connected, up to limit if it is not negative: the
// connections must get their turn.
func (ln *listener) accept(limit int) {
	for ; limit != 0; limit-- {
		fd, sa, err := unix.Accept4(ln.socket.FD, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			ln.welcome(fd, sa)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN, unix.EINVAL: // EINVAL: the listener was shut down
			return
		default:
			ln.warn.Warn().Err(err).Msgf("cannot accept: %v: trying again in %v", err, acceptPause)
			ln.watchListeners(0)
			ln.acceptAgain = time.Now().Add(acceptPause)
			return
		}
	}
}

func (ln *listener) welcome(fd int, sa unix.Sockaddr) {
	c := &conn{server: ln.server, fd: fd}
	if name, ok := sa.(*unix.SockaddrUnix); ok {
		c.peer = name.Name
	}
	cred, _ := uds.PeerCred(fd)
	c.quiet = ln.isHealthCheck(c.peer, cred)
	if ln.MaxConnections > 0 && ln.open >= ln.MaxConnections {
		ln.warn.Warn().Str("peer", c.peer).Int("max_connections", ln.MaxConnections).
			Msgf("turned a client away: %d connections are open, the most allowed", ln.open)
		_ = unix.Close(fd)
		return
	}
	if err := ln.add(fd, c, unix.EPOLLIN); err != nil {
		ln.warn.Warn().Err(err).Msgf("turned a client away: %v", err)
		_ = unix.Close(fd)
		return
	}
	ln.lastID++
	c.id = ln.lastID
	ln.open++
	if ev := c.event(); ev != nil {
		if cred != nil {
			ev = ev.Uint32("uid", cred.Uid).Uint32("gid", cred.Gid)
			if cred.Pid > 0 {
				ev = ev.Int32("pid", cred.Pid)
			} else {
				ev = ev.Str("pid", "unknown")
			}
		}
		ev.Msg("connection from")
	}
}

// A conn is one client. It costs the server what is here: the bytes that are
// under way are in the kernel's buffers.
type conn struct {
	*server
	fd    int
	quiet bool
	id    uint64
	peer  string
	rest  []byte // received and not yet sent back; while there is any, nothing is received
}

// maxTurn is how many receives one client gets before the others' turn.
const maxTurn = 16

func (c *conn) ready() {
	if len(c.rest) > 0 && !c.send() {
		return
	}
	for range maxTurn {
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != nil:
			c.end(err)
			return
		}
		if ev := c.event(); ev != nil {
			ev.Int("bytes", n).Msg("received " + Quote(c.buf[:n]))
		}
		if n == 0 {
			c.end(nil)
			return
		}
		if ev := c.event(); ev != nil {
			ev.Int("bytes", n).Msg("sending data back to the client")
		}
		c.rest = c.buf[:n]
		if !c.send() || n < len(c.buf) {
			return
		}
	}
}

// send sends the rest and tells whether all of it is gone. What the client does
// not take now is kept, at most one chunk, and nothing more is received from a
// client that does not read.
func (c *conn) send() bool {
	kept := &c.rest[0] != &c.buf[0]
	for len(c.rest) > 0 {
		n, err := unix.SendmsgN(c.fd, c.rest, nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if !kept {
				c.rest = append([]byte(nil), c.rest...)
				c.watch(c.fd, unix.EPOLLOUT)
			}
			return false
		case err != nil:
			c.end(err)
			return false
		default:
			c.rest = c.rest[n:]
		}
	}
	c.rest = nil
	if kept {
		c.watch(c.fd, unix.EPOLLIN)
	}
	return true
}

// end closes the connection, after end of file or, with err, because it broke.
func (c *conn) end(err error) {
	switch ev := c.event(); {
	case ev == nil:
	case err != nil:
		ev.Err(err).Msgf("lost the connection: %v", err)
	default:
		ev.Msg("no data from")
	}
	c.remove(c.fd)
	_ = unix.Close(c.fd)
	c.open--
	if ev := c.event(); ev != nil && c.drainUntil.IsZero() {
		ev.Msg("waiting for a connection")
	}
}

// event is an event about this client, nil where its level is off.
func (c *conn) event() *zerolog.Event {
	level := zerolog.InfoLevel
	if c.quiet {
		level = zerolog.DebugLevel
	}
	if c.Log.GetLevel() > level {
		return nil
	}
	return c.Log.WithLevel(level).Uint64("conn", c.id).Str("peer", c.peer)
}
