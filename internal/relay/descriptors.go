package relay

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// A descriptor that came with a message is in [direction.files] until its
// message is sent. Then the relay closes its own, and until the receiver has
// received the message, the descriptor is in flight. Both are counted, for all
// and for each user.

// MaxHeld is how many descriptors may wait in a relay, over all connections:
// until they are sent, and closed. One user may have three quarters of them.
const MaxHeld = 1024

// A usage counts descriptors by the user of the client whose connection they
// pass on.
type usage struct {
	all   int
	users map[int64]int
}

func newUsage() usage { return usage{users: map[int64]int{}} }

// add counts n more, or fewer if n is negative.
func (u *usage) add(user int64, n int) {
	u.all += n
	if u.users[user] += n; u.users[user] == 0 {
		delete(u.users, user)
	}
}

// tooMany reports whether all descriptors, or those of one user, are too many.
func (u *usage) tooMany(user int64) bool { return u.all > MaxHeld || u.users[user] > MaxHeld/4*3 }

// relieve is called when descriptors were received. If the links hold too many,
// the relay ends the one that holds most, of the user that has most.
func (d *direction) relieve() {
	l, r := d.link, d.link.relay
	if !r.files.tooMany(l.conn.UID) {
		return
	}
	held := func(l *link) int { return len(l.toTarget.files) + len(l.toClient.files) }
	sum := newUsage()
	for other := range r.links {
		sum.add(other.conn.UID, held(other))
	}
	if !sum.tooMany(l.conn.UID) {
		return // the others are about to be closed
	}
	for other := range r.links {
		had, has := sum.users[l.conn.UID], sum.users[other.conn.UID]
		if has > had || has == had && held(other) > held(l) {
			l = other
		}
	}
	l.cut(fmt.Sprintf("%d descriptors wait for ends that do not read, %d of them are its user's", sum.all, sum.users[l.conn.UID]))
}

// mayReceive reports whether a message may be received. If descriptors come
// next, and too many others are not closed yet, the direction waits until they
// are: their closes may hang.
func (d *direction) mayReceive() bool {
	if !d.from.rights || !d.link.relay.files.tooMany(d.link.conn.UID) || !d.rightsNext() {
		return true
	}
	d.park(starved)
	return false
}

// rightsNext reports whether descriptors come with the next message.
func (d *direction) rightsNext() bool {
	if d.link.records {
		return sock.PeekRights(d.from.fd)
	}
	// PeekRights asks for credentials, which a stream's end would have too.
	var b [1]byte
	_, _, flags, _, err := unix.Recvmsg(d.from.fd, b[:], nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && flags&unix.MSG_CTRUNC != 0
}

// sendFiles sends the rest with its descriptors. Until these are received, the
// kernel counts them for the relay's own user, and allows as many as a process
// may have open files, unix(7), ETOOMANYREFS. So that no client takes that from
// all others, each user has a part of it.
func (d *direction) sendFiles() (int, error) {
	flying, user := &d.link.relay.flying, d.link.conn.UID
	if flying.users[user]+len(d.files) > d.link.relay.mostFlying {
		return 0, unix.ETOOMANYREFS
	}
	n, err := sock.SendFiles(d.to.fd, d.rest, d.files, "")
	if err == nil {
		d.flying += len(d.files)
		flying.add(user, len(d.files))
	}
	return n, err
}

// landed stops counting the descriptors in flight, if the receiver has received
// everything, or the link has ended.
func (d *direction) landed() {
	if d.flying > 0 && (d.link.closed || d.to.queued() == 0) {
		d.link.relay.flying.add(d.link.conn.UID, -d.flying)
		d.flying = 0
	}
}

// closeFiles closes the descriptors of the rest, beside the loop: the receiver
// may have closed them already, and then the last close waits for whatever the
// sender chose.
func (d *direction) closeFiles() {
	if n := len(d.files); n > 0 {
		r, user := d.link.relay, d.link.conn.UID
		// Do not use sock.CloseFiles: the receiver has the same open files, and
		// this process must not change their options.
		r.srv.CloseBeside(user, func() { r.files.add(user, -n) }, d.files...)
		d.files = nil
	}
}
