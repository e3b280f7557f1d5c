package server_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/internal/testkit"
)

// One owner whose closes hang does not keep others from closing, and the log
// says that they hang. A close hangs here in its done.
func TestOwnerWhoseClosesHangDoesNotStopOthers(t *testing.T) {
	t.Parallel()
	var log testkit.Text
	c := server.NewClosers(zerolog.New(&log))
	hang := make(chan struct{})
	var all sync.WaitGroup
	closed := func(owner int64, n int, done func()) {
		for range n {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			testkit.Check(t, err)
			all.Add(1)
			c.Close(owner, func() { done(); all.Done() }, fd)
		}
	}
	closed(1, 10, func() { <-hang })
	others := make(chan struct{}, 100)
	closed(2, 100, func() { others <- struct{}{} })
	for range 100 {
		<-others
	}
	c.Sweep() // the others have been closed since the start
	if s := log.String(); s != "" {
		t.Errorf("log: %s", s)
	}
	testkit.Await(t, func() error { // the last of them may not be counted yet
		c.Sweep()
		if s := log.String(); !strings.Contains(s, "4 closes hang") || !strings.Contains(s, "6 descriptors wait") {
			return errors.New("log: " + s)
		}
		return nil
	})
	close(hang)
	all.Wait()
}
