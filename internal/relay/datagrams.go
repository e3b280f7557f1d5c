package relay

import (
	"cmp"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/relay/record"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// A peer represents one datagram client to the target: a socket of its own, so
// that the target's answers reach that client.
type peer struct {
	relay    *Relay
	client   server.Sender
	cred     *unix.Ucred // of its first message
	id       uint64
	record   *record.Conn
	conn     *sock.Conn // owns the name of the socket; nil while it is being dialled
	fd       int        // -1 while it is being dialled
	rest     []byte     // a message that the target does not accept now; nil if there is none
	files    []int      // its descriptors
	again    bool       // rest was sent before, to a target that has ended
	owed     int        // messages that the target may still answer
	slow     bool       // the client does not read its replies now
	noRights bool       // no descriptor can come from the target
	still    time.Duration
	last     uint64 // when something passed last, in messages of all peers
}

// Receive forwards a message.
func (r *Relay) Receive(m server.Message) (more bool) {
	p := r.peers[m.Key()]
	if p == nil {
		cred := m.Cred()
		if !r.makeRoom(cred) {
			logtext.WithPeer(r.warn.Warn(), m.Address()).Msgf("dropped a message: datagram client limit reached, and %d clients wait for the target", r.Busy())
			m.Close(m.Files...)
			return true
		}
		r.lastID++
		p = &peer{relay: r, client: m.Clone(), cred: cred, id: r.lastID, record: r.record(r.lastID, m.Address(), cred), fd: -1}
		r.peers[p.client.Key()] = p
		logtext.WithCred(logtext.WithPeer(r.srv.Log.Info().Uint64("conn", p.id), m.Address()), cred).Msg("message from a new client")
	}
	p.record.Data(true, m.Bytes, m.Files)
	return p.send(m.Bytes, m.Files)
}

// makeRoom closes a peer if there are too many, because datagram clients do not
// announce their end. It takes the peer that has been silent for longest of
// those that the target owes no answer, or else of all: many targets never
// answer. It reports whether there is room; a peer whose message the target has
// not accepted yet stays.
func (r *Relay) makeRoom(cred *unix.Ucred) bool {
	same := func(p *peer) bool { return cred != nil && p.cred != nil && cred.Uid == p.cred.Uid }
	own := 0
	for _, p := range r.peers {
		if same(p) {
			own++
		}
	}
	tooManyOwn := r.config.MaxPeersPerUser > 0 && own >= r.config.MaxPeersPerUser
	if !tooManyOwn && (r.config.MaxPeers == 0 || len(r.peers) < r.config.MaxPeers) {
		return true
	}
	var victim *peer
	order := func(a, b *peer) int {
		return cmp.Or(cmp.Compare(min(a.owed, 1), min(b.owed, 1)), cmp.Compare(a.last, b.last))
	}
	for _, p := range r.peers {
		if p.rest == nil && (same(p) || !tooManyOwn) && (victim == nil || order(p, victim) < 0) {
			victim = p
		}
	}
	if victim == nil {
		return false
	}
	victim.close()
	return true
}

// touch notes that something passes.
func (p *peer) touch() {
	p.relay.passed++
	p.last, p.still = p.relay.passed, 0
}

// send sends a message to the target. If the target does not accept it now,
// the peer keeps it and receives nothing more until it is sent.
func (p *peer) send(message []byte, files []int) bool {
	p.touch()
	_, err := sock.SendFiles(p.fd, message, files, "") // EBADF while it is being dialled
	switch {
	case err == nil:
		if p.client.Address() != "" { // otherwise no answer can reach it
			p.owed++
		}
		if p.rest != nil {
			p.rest, p.files, p.again = nil, nil, false
			p.watch()
			p.client.Resume()
		}
		p.client.Close(files...)
		return true
	case err == unix.EAGAIN || err == unix.EINTR:
		p.keep(message, files)
		p.watch()
	case !p.again && (p.fd < 0 || err == unix.ECONNREFUSED || err == unix.ECONNRESET || err == unix.ENOTCONN || err == unix.EPIPE):
		p.again = p.fd >= 0
		p.keep(message, files)
		p.hangUp()
		p.relay.dial(p.relay.ctx, nil, p.connected)
	default:
		p.lose(files, sock.ExplainSize(p.fd, len(message), err))
		return true
	}
	return false
}

func (p *peer) keep(message []byte, files []int) {
	if p.rest == nil {
		p.files = files
		p.rest = append([]byte{}, message...)
		p.client.Pause()
	}
}

// lose drops a message and its descriptors.
func (p *peer) lose(files []int, err error) {
	logtext.WithPeer(p.relay.warn.Warn().Err(err), p.client.Address()).Msgf("dropped a message to the target: %s", escape(err))
	p.again = false
	p.client.Close(files...)
	if p.rest != nil {
		p.rest, p.files = nil, nil
		p.client.Resume()
	}
}

func (p *peer) connected(conn *sock.Conn, err error) {
	r := p.relay
	if r.ctx.Err() != nil || r.peers[p.client.Key()] != p {
		if conn != nil {
			_ = conn.Close()
		}
		return
	}
	if err == nil {
		p.conn = conn
		p.fd, err = conn.Detach()
	}
	if err == nil {
		p.noRights = sock.RefusesRights(p.fd)
		_ = sock.SetSendBuffer(p.fd, sock.MaxMessage()+32) // otherwise a message that is too large fails with EMSGSIZE
		err = r.srv.Loop.Add(p.fd, p, unix.EPOLLIN)
	}
	if err != nil {
		p.lose(p.files, err)
		p.close()
		return
	}
	p.send(p.rest, p.files)
}

// Ready sends the waiting message, and carries replies back.
func (p *peer) Ready(events uint32) {
	if p.rest != nil && events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		p.send(p.rest, p.files)
	}
	for range 2 * maxTurn {
		if p.fd < 0 || p.slow || events&unix.EPOLLIN == 0 {
			return
		}
		receive := p.relay.replies.Receive
		if p.relay.config.PassFiles {
			receive = p.relay.replies.ReceiveFiles
		}
		message, err := receive(p.fd)
		files := p.relay.replies.Files()
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			return
		case unwanted(err):
			p.relay.warn.Warn().Err(err).Msgf("dropped a message from the target: %s", escape(err))
			p.client.Close(files...)
			continue
		case err != nil: // the target has ended; the next message dials another
			p.hangUp()
			return
		}
		p.touch()
		p.owed = max(p.owed-1, 0)
		p.record.Data(false, message, files)
		if p.client.Address() == "" {
			p.client.Close(files...)
			continue
		}
		p.client.Reply(message, files...)
		if !p.client.Ready() {
			p.slow = true
			p.watch()
			p.client.WhenReady(func() {
				if p.slow { // otherwise it has hung up meanwhile
					p.slow = false
					p.watch()
				}
			})
		}
	}
}

// watch makes the loop wait for events that the peer can handle.
func (p *peer) watch() {
	want := uint32(0)
	if !p.slow {
		want |= unix.EPOLLIN
	}
	if p.rest != nil {
		want |= unix.EPOLLOUT
	}
	p.relay.srv.Loop.Watch(p.fd, want)
}

// hangUp closes the socket to the target.
func (p *peer) hangUp() {
	p.owed, p.slow = 0, false
	if p.fd >= 0 {
		p.relay.srv.Loop.Remove(p.fd)
		if p.noRights {
			_ = unix.Close(p.fd)
		} else {
			p.client.Close(p.fd) // the kernel closes what is left in its queue
		}
		p.fd = -1
	}
	if p.conn != nil {
		_ = p.conn.Close() // removes its name
		p.conn = nil
	}
}

func (p *peer) close() {
	p.hangUp()
	if p.rest != nil {
		p.lose(p.files, fmt.Errorf("the relay ends"))
	}
	p.record.End(true)
	p.record.End(false)
	delete(p.relay.peers, p.client.Key())
}
