package relay

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
)

// A usage counts descriptors by the user of the client whose connection they
// pass on.
type usage struct {
	mu    sync.Mutex
	all   int
	users map[int64]int
}

// add adds n, which may be negative, and returns the sums.
func (u *usage) add(user int64, n int) (all, own int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.all += n
	own = u.users[user] + n
	if u.users[user] = own; own == 0 {
		delete(u.users, user)
	}
	return u.all, own
}

// of returns the number of a user.
func (u *usage) of(user int64) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.users[user]
}

// user returns the user of a link's client, -1 if it is not known.
func (l *link) user() int64 { return l.about.UID }

// tooMany reports whether all descriptors, or those of one user, are too many.
func tooMany(all, own int) bool { return all > MaxHeld || own > MaxHeld/4*3 }

// received counts descriptors that an end has just received. If the links hold
// too many, the relay ends the one that holds most, of the user that has most.
func (e *end) received() {
	l, r := e.link, e.link.relay
	if !tooMany(r.files.add(l.user(), len(e.files))) {
		return
	}
	held := func(l *link) int { return len(l.client.files) + len(l.target.files) }
	all, users := 0, map[int64]int{}
	for other := range r.links {
		all += held(other)
		users[other.user()] += held(other)
	}
	if !tooMany(all, users[l.user()]) {
		return // the others are about to be closed
	}
	for other := range r.links {
		had, has := users[l.user()], users[other.user()]
		if has > had || has == had && held(other) > held(l) {
			l = other
		}
	}
	l.cut(fmt.Sprintf("%d descriptors wait for ends that do not read, %d of them are its user's", all, users[l.user()]))
}

// mayReceive reports whether an end may receive. If descriptors come next, and
// too many others are not closed yet, it waits until they are: their closes may
// hang.
func (e *end) mayReceive() bool {
	r := e.link.relay
	if !e.unix || e.noRights || !tooMany(r.files.add(e.link.user(), 0)) || !e.rightsNext() {
		return true
	}
	e.park()
	return false
}

// rightsNext reports whether descriptors come with the next message.
func (e *end) rightsNext() bool {
	if e.records {
		return sock.PeekRights(e.fd)
	}
	// PeekRights asks for credentials, which a stream's end would have too.
	var b [1]byte
	_, _, flags, _, err := unix.Recvmsg(e.fd, b[:], nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && flags&unix.MSG_CTRUNC != 0
}

// closeFiles closes the descriptors of the rest, beside the loop: the receiver
// may have closed them already, and then the last close waits for whatever the
// sender chose, see [server.Closers].
func (e *end) closeFiles() {
	if n := len(e.files); n > 0 {
		r, user := e.link.relay, e.link.user()
		// Do not use sock.CloseFiles: the receiver has the same open files, and
		// this process must not change their options.
		r.srv.Closers.Close(user, func() { r.files.add(user, -n) }, e.files...)
		e.files = nil
	}
}

// mayFly reports whether the descriptors of the rest may be sent. Until they are
// received, the kernel counts them for the relay's own user, and allows as many
// as a process may have open files, unix(7), ETOOMANYREFS. So that no client
// takes that from all others, each user has a part of it.
func (e *end) mayFly() bool {
	r := e.link.relay
	return r.flying.of(e.link.user())+len(e.files) <= r.mostFlying
}

// landed stops counting the descriptors from an end, if the other one has
// received everything.
func (e *end) landed() {
	if e.flying > 0 {
		if n, err := unix.IoctlGetInt(e.other().fd, unix.SIOCOUTQ); err != nil || n == 0 {
			e.flown()
		}
	}
}

func (e *end) flown() {
	if e.flying > 0 {
		e.link.relay.flying.add(e.link.user(), -e.flying)
		e.flying = 0
	}
}

// closeSockets closes the ends' sockets, and then ends the link. In the queue of
// a socket there may be descriptors, and no close of these may happen on the
// loop.
func (l *link) closeSockets() {
	var beside []int
	for _, e := range []*end{&l.client, &l.target} {
		switch {
		case e.fd < 0:
		case !e.unix || e.noRights || sock.Drain(e.fd):
			_ = unix.Close(e.fd)
		default:
			beside = append(beside, e.fd)
		}
	}
	l.about.End(beside...)
}
