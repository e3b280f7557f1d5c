package server

import (
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/testkit"
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
