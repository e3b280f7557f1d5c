package server

import (
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/raw"
)

// acceptPause is how long a server without free descriptors waits before it
// accepts again. Without this pause, accept would fail in a busy loop.
const acceptPause = 100 * time.Millisecond

// A listener accepts connections.
type listener struct {
	server   *server
	socket   *addr.Socket
	noRights bool // of its connections, see [sock.RefusesRights]
}

func (ln *listener) Ready(uint32) { ln.accept(64) }

// acceptAll accepts all waiting connections, and reports whether it could: see
// acceptLater.
func (ln *listener) acceptAll() (all bool) { return ln.accept(-1) }

// accept accepts waiting connections, up to limit if it is not negative,
// because open connections must get their turn. It reports whether none is
// left waiting.
func (ln *listener) accept(limit int) (all bool) {
	for ; limit != 0; limit-- {
		if ln.server.rejected >= maxRejected {
			ln.server.acceptLater("accept", errClosing)
			return false
		}
		fd, err := raw.Accept(ln.socket.FD())
		switch err {
		case nil:
			ln.welcome(fd)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN, unix.EINVAL: // EINVAL: the listener was shut down
			return true
		default:
			ln.server.acceptLater("accept", err)
			return false
		}
	}
	return false
}

// turnAwayAll closes the waiting connections that could not be accepted
// because descriptors were missing, and counts them. It is called once
// everything else is closed, which frees descriptors: at least those of the
// loop.
func (s *server) turnAwayAll() {
	n := 0
	for _, ln := range s.listeners {
		if ln.socket.Shared() {
			continue // the other servers serve them
		}
		_ = ln.socket.Refuse()
		for range 1 << 16 { // a TCP socket is not shut down, and clients may continue to connect
			fd, err := raw.Accept(ln.socket.FD())
			if err == unix.EMFILE && raiseOpenFiles() {
				continue
			}
			if err == unix.EAGAIN || err == unix.EINVAL {
				break
			}
			if err == nil {
				n++
				s.reject(fd, ln.noRights, nil)
			} else if err != unix.EINTR && err != unix.ECONNABORTED {
				s.config.Log.Warn().Err(err).Msgf("cannot count the waiting clients: accept: %s", logtext.Escape(err.Error()))
				break
			}
		}
	}
	if n > 0 { // not rate limited: it is logged once
		s.config.Log.Warn().Stringer("cause", CauseSystem).Uint64("refused", s.config.Stats.Refuse(CauseSystem, n)).
			Msgf("rejected %d waiting clients: no descriptor became free for them", n)
	}
}

// raiseOpenFiles raises the limit of open files to its hard limit, as Go does
// when a program starts, and reports whether it had been lowered since.
func raiseOpenFiles() bool {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur >= limit.Max {
		return false
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil
}

// acceptLater waits until the system has the missing resource.
func (s *server) acceptLater(what string, err error) {
	s.refuse(CauseSystem, 0).Err(err).Msgf("cannot %s: %s: trying again in %v", what, logtext.Escape(err.Error()), acceptPause)
	s.watchListeners(0)
	s.names.forgetAll() // their descriptors may be what it lacks
	s.acceptAgain = time.Now().Add(acceptPause)
}

func (ln *listener) welcome(fd int) {
	c := &conn{server: ln.server, fd: fd}
	var cred *unix.Ucred
	t := ln.socket.Addr.Type
	relayed := ln.server.config.Relay != nil
	logged := relayed || ln.server.config.Log.GetLevel() <= zerolog.InfoLevel
	if t.Unix() && (logged || ln.server.config.Allow != nil || ln.server.config.MaxConnectionsPerUser > 0) {
		cred, _ = sock.PeerCred(fd)
	}
	if logged {
		c.peer = sock.PeerName(fd)
		c.quiet = isHealthCheck(c.peer, cred)
	}
	if why, text := ln.refusal(t, fd, cred); text != "" {
		if ev := ln.server.refuse(why, 1); ev != nil { // there may be thousands
			logtext.WithCred(ev.Str("peer", logtext.Escape(sock.PeerName(fd))), cred).Msg("rejected a client: " + text)
		}
		ln.server.reject(fd, ln.noRights, cred)
		return
	}
	if ln.socket.Shared() {
		sock.DropAncillary(fd)
	}
	if t == addr.Files {
		uid := ln.server.count(cred)
		ln.server.config.Files(fd, c.quiet, func() { ln.server.ended.add(ln.server.loop, func() { ln.server.forgetUser(uid) }) })
		return
	}
	c.events, c.noRights = unix.EPOLLIN, ln.noRights
	switch t {
	case addr.Stream:
		sock.InlineUrgent(fd)
	case addr.TCP: // TCP connections inherit SO_OOBINLINE from the listener
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	case addr.Seqpacket:
		c.records, c.events = true, unix.EPOLLIN|unix.EPOLLRDHUP
	}
	if relayed && !c.quiet {
		ln.server.lastID++
		uid, server := ln.server.count(cred), ln.server
		c.id = server.lastID
		if ev := c.event(); ev != nil {
			logtext.WithCred(ev, cred).Msg("connection from")
		}
		ln.server.config.Relay.Connection(Client{
			FD: fd, ID: c.id, Type: t, NoRights: ln.noRights, Peer: c.peer, Cred: cred, Done: func(fds ...int) { server.relayedClosed(uid, fds) },
		})
		return
	}
	if err := ln.server.loop.Add(fd, c, c.events); err != nil {
		ln.server.refuse(CauseSystem, 1).Err(err).Msgf("rejected a client: %v", err)
		ln.server.reject(fd, ln.noRights, cred)
		return
	}
	ln.server.lastID++
	c.id = ln.server.lastID
	c.uid = ln.server.count(cred)
	c.takeBuffer(t)
	if ev := c.event(); ev != nil {
		logtext.WithCred(ev, cred).Msg("connection from")
	}
}

// refusal returns why a connected client is not served; the text is empty if
// it is served.
func (ln *listener) refusal(t addr.Type, fd int, cred *unix.Ucred) (Cause, string) {
	if t.Unix() && !ln.server.allowed(cred) {
		return CauseUser, notAllowed(cred)
	}
	why, text := ln.full(cred, 0)
	if text == "" || !t.Unix() {
		return why, text
	}
	if cred == nil {
		cred, _ = sock.PeerCred(fd)
	}
	if isHealthCheck(sock.PeerName(fd), cred) {
		return ln.full(cred, HealthChecks)
	}
	return why, text
}

// full returns which limit a further client of this user would exceed by more
// than beside; the text is empty if none.
func (ln *listener) full(cred *unix.Ucred, beside int) (Cause, string) {
	if cred != nil {
		if n := ln.server.perUser[cred.Uid]; ln.server.config.MaxConnectionsPerUser > 0 && n >= ln.server.config.MaxConnectionsPerUser+beside {
			return CauseUserConnections, fmt.Sprintf("connection limit per user (%d) reached", ln.server.config.MaxConnectionsPerUser)
		}
	}
	if n := ln.server.open; ln.server.config.MaxConnections > 0 && n >= ln.server.config.MaxConnections+beside {
		return CauseConnections, fmt.Sprintf("connection limit (%d) reached", ln.server.config.MaxConnections)
	}
	return 0, ""
}

func notAllowed(cred *unix.Ucred) string {
	if cred == nil {
		return "the kernel does not report its user"
	}
	return fmt.Sprintf("user %d, group %d is not allowed", cred.Uid, cred.Gid)
}

// A conn is one client. Its cost to the server is this struct: the bytes in
// flight are in the kernel's buffers.
type conn struct {
	server   *server
	fd       int
	events   uint32 // what the loop waits for while nothing is blocked
	quiet    bool
	noRights bool          // no descriptor can come along
	records  bool          // a seqpacket connection: records are received and sent back whole
	blocked  bool          // nothing is received: rest waits until the client reads, or without a rest the next record waits for room
	still    time.Duration // the first sweep after the client sent or read something; 0: not yet
	unread   int32         // at the last sweep, while blocked
	buffer   int32         // the send buffer, if it is smaller than the others; 0: full, see room.go
	uid      int64         // -1: not known
	id       uint64
	peer     string
	rest     []byte // received and not yet sent back
	kept     []byte // the buffer that rest is part of while blocked
}

// The share of one client before the others get their turn: this many
// receives, and for large ones this many bytes, after which one more receive
// may follow.
const (
	maxTurn      = 16
	maxTurnBytes = 32 << 10
)

func (c *conn) Ready(events uint32) {
	switch {
	case !c.blocked:
	case c.waitsForRoom():
		if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 { // no process reads the reply
			c.end(nil)
		}
		return
	case !c.send() || c.records: // the next call, with its own events, handles what has arrived meanwhile
		return
	}
	if c.records {
		if c.makeRoom() && (c.noRights || c.mayReceive()) {
			c.receiveRecord(events)
		}
		return
	}
	for turn, bytes := 0, 0; turn < maxTurn && bytes < maxTurnBytes; turn++ {
		if !c.noRights && !c.mayReceive() {
			return
		}
		most := c.mostBytes()
		payload, err := c.receive(most)
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			c.end(err)
			return
		}
		if len(payload) == 0 {
			c.logReceived(payload)
			c.end(nil)
			return
		}
		c.received(payload)
		if !c.sendBack(payload) || len(payload) < most {
			return
		}
		bytes += len(payload)
	}
}

func (c *conn) receive(most int) ([]byte, error) {
	if c.noRights {
		return c.server.streams.Read(c.fd, most)
	}
	return c.server.streams.ReceiveStream(c.fd, most)
}

// receiveRecord receives one record. It must distinguish an empty record from
// the end of the connection, because recvmsg(2) reports both as 0 bytes: if
// epoll did not report that the peer has shut down, it was a record.
func (c *conn) receiveRecord(events uint32) {
	var record []byte
	var end bool
	var err error
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		record, end, err = c.server.receiver.ReceiveRecord(c.fd)
	} else {
		record, err = c.server.receiver.Receive(c.fd)
	}
	switch {
	case err == unix.EAGAIN:
	case err != nil:
		c.end(err)
	case end:
		c.end(nil)
	default:
		c.received(record)
		c.sendBack(record)
	}
}

func (c *conn) received(payload []byte) {
	c.still = 0
	c.server.config.Stats.Messages.Add(1)
	c.server.config.Stats.Bytes.Add(uint64(len(payload)))
	c.logReceived(payload)
}

func (c *conn) logReceived(payload []byte) {
	if ev := c.event(); ev != nil {
		ev.Int("bytes", len(payload)).Msg("received " + logtext.Quote(payload))
	}
}

func (c *conn) sendBack(payload []byte) bool {
	if ev := c.event(); ev != nil {
		ev.Int("bytes", len(payload)).Msg("sending data back to the client")
	}
	c.rest = payload
	return c.send()
}

// send sends the rest and reports whether all of it is sent. It keeps what the
// client does not take now, at most one chunk or record. Nothing more is
// received from a client that does not read.
func (c *conn) send() bool {
	for {
		n, err := raw.Send(c.fd, c.rest)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && c.growBuffer():
		case err == unix.EAGAIN:
			if !c.blocked {
				c.blocked = true
				c.keep() // the buffer is shared by all connections
				c.server.loop.Watch(c.fd, unix.EPOLLOUT)
			}
			return false
		case err != nil:
			c.end(err)
			return false
		case n < len(c.rest):
			c.rest = c.rest[n:]
			c.still = 0
		default:
			if c.blocked {
				c.still = 0
				c.blocked = false
				c.drop()
				c.server.loop.Watch(c.fd, c.events)
			}
			c.rest = nil
			return true
		}
	}
}

// hasRead reports whether a client that does not take everything has read
// something since the last call. The kernel may let the server send again much
// later: only when three quarters of the send buffer are free.
func (c *conn) hasRead() bool {
	if !c.blocked {
		return false
	}
	if c.waitsForRoom() {
		return true // it is not the client that keeps the server waiting
	}
	unread, err := unix.IoctlGetInt(c.fd, unix.SIOCOUTQ)
	if err != nil {
		return false
	}
	less := int32(unread) < c.unread
	c.unread = int32(unread)
	return less
}

// end closes the connection, after end of file or, with err, because it broke.
func (c *conn) end(err error) {
	switch ev := c.event(); {
	case errors.Is(err, sock.ErrDescriptors):
		c.disconnected(CauseDescriptors, "%v", err)
		c.close(c.receiver().Files()...)
		return
	case errors.Is(err, sock.ErrTruncated):
		c.disconnected(CauseTruncated, "%v", err)
		c.close(c.receiver().Files()...)
		return
	case ev == nil:
	case err != nil:
		ev.Err(err).Msgf("lost the connection: %v", sock.ExplainSize(c.fd, len(c.rest), err))
	default:
		ev.Msg("no data from")
	}
	c.close()
}

// turnAway disconnects a client that the server stops serving.
func (c *conn) turnAway(why Cause, format string, args ...any) {
	c.disconnected(why, format, args...)
	c.close()
}

// disconnected counts and logs such a client.
func (c *conn) disconnected(why Cause, format string, args ...any) {
	c.server.refuse(why, 1).Uint64("conn", c.id).Str("peer", logtext.Escape(sock.PeerName(c.fd))).Int64("uid", c.uid).
		Msgf("disconnected a client: "+format, args...)
}

// event returns an event about this client, nil if its level is off.
func (c *conn) event() *zerolog.Event {
	ev := c.server.about(c.quiet)
	if ev == nil {
		return nil // Escape costs time
	}
	return ev.Uint64("conn", c.id).Str("peer", logtext.Escape(c.peer))
}
