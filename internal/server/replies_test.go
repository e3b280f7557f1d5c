package server

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// A server that woke up for replies which are not there would do so without end,
// and use a whole processor.
func TestServerSleepsOnceTheLastReplyIsDropped(t *testing.T) {
	t.Parallel()
	s, err := New(Config{Log: zerolog.Nop()})
	testkit.Check(t, err)
	defer s.close()
	d := &datagrams{server: s, queues: map[client]*queue{}, maxBytes: maxWaitingBytes}
	s.datagrams = []*datagrams{d}
	who := client{address: "somebody"}
	d.waitFirst(who, reply{message: []byte("hello")})
	d.dropQueue(who, d.queues[who], errors.New("nobody is there"))
	d.sendWaiting(time.Now())
	s.stopBy = time.Now().Add(time.Hour) // so that it does not look at its files
	if sleep := s.timeout(); d.waiting != 0 || sleep < time.Minute {
		t.Errorf("%d replies wait, and the server sleeps for %v", d.waiting, sleep)
	}
	s.datagrams = nil // it has no socket
}

// Lookups of paths that a file system does not answer leave room for abstract names.
func TestLookupsOfAbstractNamesHavePlacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := searches{post: func(func()) bool { return true }, asked: map[client]bool{}, users: map[place]int{}} // no search ends
	for i := range 2 * maxUserSearches {
		s.ask(client{address: sock.Path(fmt.Sprintf("/none/%d", i))}, unix.AT_FDCWD, nil)
	}
	name := client{address: sock.Path("\x00name")}
	s.ask(name, unix.AT_FDCWD, nil)
	if len(s.asked) != maxUserSearches+1 || !s.asked[name] {
		t.Errorf("%d lookups are in progress, the abstract name's: %v", len(s.asked), s.asked[name])
	}
}
