package socktest

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/udsecho/udsecho/uds/sock"
)

func TestOfManyGoroutinesStartingAtOnceExactlyOneWins(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	for round := range 20 {
		if round%2 == 1 {
			stale(t, a.Path)
		}
		var (
			begin   = make(chan struct{})
			sockets = make(chan *sock.Socket, 32)
			wg      sync.WaitGroup
		)
		for range cap(sockets) {
			wg.Go(func() {
				<-begin
				s, err := sock.ListenConfig{}.Listen(a)
				switch {
				case err == nil:
					sockets <- s
				case !errors.Is(err, sock.ErrInUse):
					t.Errorf("a loser's error is %v", err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if len(sockets) != 1 {
			t.Fatalf("round %d: %d won", round, len(sockets))
		}
		dial(t, a)
		check(t, (<-sockets).Close())
	}
}

func TestOfManyProcessesStartingAtOnceExactlyOneWins(t *testing.T) {
	t.Parallel()
	for _, round := range []string{"on a free path", "on a stale socket"} {
		a := stream(dir(t) + "/s")
		if round == "on a stale socket" {
			stale(t, a.Path)
		}
		begin, cue, err := os.Pipe()
		check(t, err)
		var children []*child
		for range 8 {
			children = append(children, start(t, 0, []*os.File{begin}, "listen", a.String(), "600", "022", "on cue"))
		}
		check(t, begin.Close())
		check(t, cue.Close())
		won := 0
		for _, c := range children {
			switch o := c.outcome(t); {
			case o.Err == "":
				won++
			case !o.InUse:
				t.Errorf("%s: a loser's error is %s", round, o.Err)
			}
		}
		if won != 1 {
			t.Errorf("%s: %d won", round, won)
		}
		dial(t, a)
		for _, c := range children {
			c.end(t)
		}
		gone(t, a.Path)
		gone(t, beside(a.Path, ".lock"))
	}
}

// Its holder removes the lock file, so a starter may lock a file that is no
// longer there.
func TestNeverTwoServersWhileSocketsComeAndGo(t *testing.T) {
	t.Parallel()
	a := stream(dir(t) + "/s")
	var (
		serving atomic.Int32
		won     atomic.Int32
		wg      sync.WaitGroup
	)
	for range 8 {
		wg.Go(func() {
			for won.Load() < 200 && !t.Failed() {
				s, err := sock.ListenConfig{}.Listen(a)
				if err != nil {
					if !errors.Is(err, sock.ErrInUse) {
						t.Errorf("a loser's error is %v", err)
					}
					continue
				}
				won.Add(1)
				if n := serving.Add(1); n != 1 {
					t.Errorf("%d servers have the path", n)
				}
				if conn, err := sock.Dial(t.Context(), a, sock.DialConfig{}); err != nil {
					t.Errorf("the winner does not serve: %v", err)
				} else {
					_ = conn.Close()
				}
				serving.Add(-1)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
