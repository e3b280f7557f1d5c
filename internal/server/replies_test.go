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
	d.end(who, d.queues[who])
	d.sendWaiting(time.Now())
	if d.waiting != 0 || !d.tryAgain.IsZero() {
		t.Errorf("%d replies wait, and the server tries again at %v", d.waiting, d.tryAgain)
	}
	s.datagrams = nil // it has no socket
}
