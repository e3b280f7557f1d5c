package server_test

import (
	"testing"

	"github.com/udsecho/udsecho/internal/server"
)

const systemDefault = 212992

// Whatever connections take, and in whatever container, they never take more
// than the limit, and each has at least the floor.
func TestPoolStaysWithinItsLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30} {
		for _, most := range []int{1, 20, 1000, 20_000} {
			for _, ends := range []int{1, 2} {
				p := server.NewPool(limit, most, ends, systemDefault)
				held := 2 * p.Datagrams
				for user := range p.Most {
					for range ends {
						size := p.Buffer(int64(user % 3))
						if size == 0 {
							size = p.Full
						}
						if size < p.Floor {
							t.Fatalf("%d bytes, %d connections: a buffer of %d bytes, the floor is %d", limit, most, size, p.Floor)
						}
						held += 2 * size // a full buffer takes one more message
					}
				}
				for !p.Short(4, 1000) {
					p.Keep(4, 1000)
					held += 1000
				}
				if held > limit/8*5 || p.Most > most || p.Floor > systemDefault {
					t.Errorf("%d bytes, %d connections with %d ends: they hold %d, and are %s", limit, most, ends, held, p)
				}
			}
		}
	}
}

// With room, all connections have the system's buffer; what is returned can be
// taken again.
func TestPoolGivesAllThereIsAndTakesItBack(t *testing.T) {
	t.Parallel()
	p := server.NewPool(1<<30, 500, 1, systemDefault)
	for range 3 {
		for i := range 500 {
			if size := p.Buffer(int64(i)); size != 0 {
				t.Fatalf("connection %d has %d bytes", i, size)
			}
		}
		for i := range 500 {
			p.ReturnBuffer(int64(i), 0)
		}
	}
}

// What connections of any size return is all that they have taken: otherwise a
// server that runs for long would have less and less.
func TestPoolLosesNothing(t *testing.T) {
	t.Parallel()
	p := server.NewPool(64<<20, 1000, 1, systemDefault)
	sizes := make([]int, 300)
	for i := range sizes {
		sizes[i] = p.Buffer(1)
	}
	for _, size := range sizes {
		p.ReturnBuffer(1, size)
	}
	if p.Short(1, p.Share()) {
		t.Errorf("of %s, a part is lost", p)
	}
}

// A user who takes all that he can leaves something to others.
func TestPoolKeepsSomethingForOtherUsers(t *testing.T) {
	t.Parallel()
	p := server.NewPool(64<<20, 1000, 1, systemDefault)
	for !p.Short(1, 4096) {
		p.Keep(1, 4096)
	}
	if p.Short(2, p.Size/8) {
		t.Error("another user gets nothing")
	}
	if !p.Short(1, p.Size/8) {
		t.Error("the first user gets more")
	}
}

func TestNilPoolHasNoBounds(t *testing.T) {
	t.Parallel()
	p := server.NewPool(0, 1000, 1, systemDefault)
	if p != nil || p.Buffer(1) != 0 || p.Short(1, 1<<30) {
		t.Errorf("%v has bounds", p)
	}
	p.ReturnBuffer(1, 0)
	p.Keep(1, 1<<30)
}

// The limit of this process, wherever the test runs, allows the test.
func TestLimit(t *testing.T) {
	t.Parallel()
	if n, source := server.MemoryLimit(); n < 1<<20 {
		t.Errorf("%d bytes, says the %s", n, source)
	}
}
