package testkit

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Seed returns FAULT_SEED, or a new seed if the environment has none. The log
// of the test shows it.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("FAULT_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FAULT_SEED: %v", err)
		}
	}
	t.Logf("FAULT_SEED=%d replays the faults", seed)
	return seed
}

// A Proxy is an unreliable connection between a client and a server on a Unix
// socket: it delays, splits, merges, cuts and half-closes. A seed determines
// where it does, so that a failure can be replayed.
type Proxy struct {
	listener    net.Listener
	network, to string
	seed        uint64
	most        int
	running     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]bool
	faults map[string]int
}

// StartProxy listens at the path at on network "unix" or "unixpacket", and
// connects every client to the server at the path to. Each direction of a
// connection breaks before it has carried most bytes. The proxy does not
// change the bytes that it carries. The test stops the proxy at its end.
func StartProxy(t testing.TB, seed uint64, network, at, to string, most int) *Proxy {
	t.Helper()
	l, err := net.Listen(network, at)
	Check(t, err)
	p := &Proxy{listener: l, network: network, to: to, seed: seed, most: most, open: map[io.Closer]bool{}, faults: map[string]int{}}
	p.running.Go(p.accept)
	t.Cleanup(p.stop)
	return p
}

func (p *Proxy) stop() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
}

// Faults counts the faults until now, by name.
func (p *Proxy) Faults() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.faults)
}

func (p *Proxy) count(fault string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[fault]++
}

func (p *Proxy) accept() {
	for n := uint64(0); ; n++ {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.connect(n, conn.(*net.UnixConn)) })
	}
}

// connect serves the n-th client.
func (p *Proxy) connect(n uint64, client *net.UnixConn) {
	defer p.opened(client)()
	conn, err := net.Dial(p.network, p.to)
	if err != nil {
		return
	}
	server := conn.(*net.UnixConn)
	defer p.opened(server)()
	var both sync.WaitGroup
	for direction, ends := range [][2]*net.UnixConn{{client, server}, {server, client}} {
		rng := rand.New(rand.NewPCG(p.seed, 2*n+uint64(direction)))
		both.Go(func() {
			if err := p.carry(rng, ends[0], ends[1]); err != nil {
				_, _ = client.Close(), server.Close()
			}
		})
	}
	both.Wait()
}

func (p *Proxy) opened(c io.Closer) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
	}
	p.open[c] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, c)
		_ = c.Close()
	}
}

var errCut = errors.New("cut")

// carry carries one direction. Only the seed determines after how many bytes
// it breaks, and how; the other faults also depend on how the bytes arrive.
func (p *Proxy) carry(rng *rand.Rand, from, to *net.UnixConn) error {
	left, cut := rng.IntN(p.most), rng.IntN(2) == 0
	buf := make([]byte, 512<<10)
	for {
		p.pause(rng, "merge") // of the bytes that arrive meanwhile
		n, err := from.Read(buf)
		if err == io.EOF {
			return to.CloseWrite()
		}
		if err != nil {
			return err
		}
		fits := buf[:min(n, left)]
		if n > left && p.network == "unixpacket" {
			fits = nil // otherwise it would become another record
		}
		left -= len(fits)
		if err := p.send(rng, to, fits); err != nil {
			return err
		}
		switch {
		case len(fits) == n:
		case cut:
			p.count("cut")
			return errCut
		default:
			p.count("half-close")
			_ = to.CloseWrite()
			_, err := io.Copy(io.Discard, from)
			return err
		}
	}
}

func (p *Proxy) send(rng *rand.Rand, to *net.UnixConn, rest []byte) error {
	for len(rest) > 0 {
		piece := rest
		if p.network == "unix" && rng.IntN(2) == 0 {
			piece = rest[:min(1<<rng.IntN(17), len(rest))]
		}
		if len(piece) < len(rest) {
			p.count("split")
		}
		p.pause(rng, "delay")
		if _, err := to.Write(piece); err != nil {
			return err
		}
		rest = rest[len(piece):]
	}
	return nil
}

// pause is a fault in one of 16 cases.
func (p *Proxy) pause(rng *rand.Rand, fault string) {
	if rng.IntN(16) == 0 {
		p.count(fault)
		time.Sleep(time.Duration(rng.Int64N(int64(2 * time.Millisecond))))
	}
}
