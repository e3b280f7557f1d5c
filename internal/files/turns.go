package files

import (
	"context"
	"slices"
	"sync"
)

// turns lets a bounded number of goroutines work at a time. If more want to,
// their users take turns, so that a user waits for the other users' next turns
// and never for all that one of them has to do.
type turns struct {
	mu    sync.Mutex
	free  int // turns that may begin now
	each  int // the most turns of one user at a time
	held  map[int64]int
	wait  map[int64][]chan struct{}
	order []int64 // the users in wait, the next one first
}

func newTurns(n, each int) *turns {
	return &turns{free: n, each: each, held: map[int64]int{}, wait: map[int64][]chan struct{}{}}
}

// begin waits for a turn of a user, or for the end of ctx.
func (t *turns) begin(ctx context.Context, user int64) error {
	begun := make(chan struct{}, 1)
	t.mu.Lock()
	if len(t.wait[user]) == 0 {
		t.order = append(t.order, user)
	}
	t.wait[user] = append(t.wait[user], begun)
	t.next()
	t.mu.Unlock()
	select {
	case <-begun:
		return nil
	case <-ctx.Done():
		// ctx ends with the server, so the place in the queue may stay.
		return ctx.Err()
	}
}

// next begins the turns that may begin.
func (t *turns) next() {
	for t.free > 0 {
		i := slices.IndexFunc(t.order, func(user int64) bool { return t.held[user] < t.each })
		if i < 0 {
			return
		}
		user := t.order[i]
		t.order = slices.Delete(t.order, i, i+1)
		begun := t.wait[user][0]
		if t.wait[user] = t.wait[user][1:]; len(t.wait[user]) > 0 {
			t.order = append(t.order, user)
		} else {
			delete(t.wait, user)
		}
		t.free--
		t.held[user]++
		begun <- struct{}{}
	}
}

// end ends a turn of a user.
func (t *turns) end(user int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	if t.held[user]--; t.held[user] == 0 {
		delete(t.held, user)
	}
	t.next()
}
