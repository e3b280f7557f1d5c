package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// A fleet is a group of clients that transfer one input after another, with
// retry, until they are told to stop.
type fleet struct {
	clients []*fleetClient
	running sync.WaitGroup
	stop    atomic.Bool
}

type fleetClient struct {
	*fleet
	addr      addr.Addr
	rng       *rand.Rand
	bytes     atomic.Int64 // received, equal to the bytes sent, in order
	transfers atomic.Int64 // complete transfers
	resumed   atomic.Int64
	err       atomic.Pointer[error]
}

// launch starts n clients; the servers take turns.
func launch(t *testing.T, seed uint64, n int, servers ...addr.Addr) *fleet {
	t.Helper()
	f := &fleet{}
	for i := range n {
		c := &fleetClient{fleet: f, addr: servers[i%len(servers)], rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		f.clients = append(f.clients, c)
		f.running.Go(func() {
			for !f.stop.Load() {
				if err := c.transfer(t.Context()); err != nil {
					c.err.Store(&err)
					return
				}
				c.transfers.Add(1)
			}
		})
	}
	t.Cleanup(func() {
		f.stop.Store(true)
		f.running.Wait()
	})
	return f
}

// await waits until every client has received more bytes.
func (f *fleet) await(t *testing.T, server *process) {
	t.Helper()
	before := make([]int64, len(f.clients))
	for i, c := range f.clients {
		before[i] = c.bytes.Load()
	}
	testkit.Await(t, func() error {
		for i, c := range f.clients {
			if err := c.err.Load(); err != nil {
				t.Fatalf("client %d of %s: %v", i, c.addr, *err)
			}
			if c.bytes.Load() == before[i] {
				return fmt.Errorf("client %d of %s gets nothing back; the server wrote:\n%s", i, c.addr, &server.Err)
			}
		}
		return nil
	})
}

// A sum is the total of a fleet.
type sum struct{ bytes, transfers, resumed, errors int64 }

func (s sum) String() string {
	return fmt.Sprintf("%d bytes of %d transfers acknowledged, each the one that was sent, over %d further connections: %d errors",
		s.bytes, s.transfers, s.resumed, s.errors)
}

// finish ends the transfers in flight. The last ones must be complete, too.
func (f *fleet) finish(t *testing.T) (s sum) {
	t.Helper()
	f.stop.Store(true)
	f.running.Wait()
	for i, c := range f.clients {
		if err := c.err.Load(); err != nil {
			t.Errorf("client %d of %s: %v", i, c.addr, *err)
			s.errors++
		}
		s.bytes += c.bytes.Load()
		s.transfers += c.transfers.Load()
		s.resumed += c.resumed.Load()
	}
	return s
}

func (c *fleetClient) transfer(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("the transfer does not end"))
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := echo.Client{Chunk: 1024, Window: 8, Log: zerolog.Nop(), Patience: patience}
	client.Redial = func(ctx context.Context) (*sock.Conn, error) {
		c.resumed.Add(1)
		return c.dial(ctx)
	}
	if c.addr.Type == addr.Datagram {
		client.Timeout = 200 * time.Millisecond // of silence, after which it connects again
	}
	size := 1 + c.rng.Int64N(512<<10)
	oneMessage := c.rng.IntN(4) == 0
	if oneMessage {
		size = 1 + c.rng.Int64N(64<<10)
	}
	var key [32]byte
	for i := range key {
		key[i] = byte(c.rng.Uint32())
	}
	l := &ledger{client: c, sent: rand.NewChaCha8(key), back: rand.NewChaCha8(key), left: size}
	if oneMessage {
		message := make([]byte, size)
		_, _ = l.sent.Read(message)
		err = client.Message(ctx, conn, message, l)
	} else {
		err = client.Copy(ctx, conn, l, l)
	}
	if err == nil && l.got != size {
		err = fmt.Errorf("received %d of %d bytes", l.got, size)
	}
	return err
}

func (c *fleetClient) dial(ctx context.Context) (*sock.Conn, error) {
	var config sock.DialConfig
	if c.addr.Type == addr.Datagram {
		config.Bind = sock.AutoName(filepath.Dir(c.addr.Path))
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 10*time.Millisecond, 100*time.Millisecond
	return backoff.Retry(ctx, func() (*sock.Conn, error) {
		conn, err := addr.Dial(ctx, c.addr, config)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) {
			err = backoff.Permanent(err)
		}
		return conn, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(patience))
}

// A ledger is the input of a transfer, in bursts, and its output, which must
// equal the input.
type ledger struct {
	client     *fleetClient
	sent, back *rand.ChaCha8
	left, got  int64
}

func (l *ledger) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, io.EOF
	}
	r := uint64(l.left) * 0x9e3779b97f4a7c15 >> 32 // the rng belongs to another goroutine
	if r%4 == 0 {
		time.Sleep(time.Duration(r % uint64(50*time.Millisecond)))
	}
	n := min(int64(len(p)), l.left, 1+int64(r%4096))
	l.left -= n
	return l.sent.Read(p[:n])
}

func (l *ledger) Write(p []byte) (int, error) {
	want := make([]byte, len(p))
	_, _ = l.back.Read(want)
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("after %d bytes, the echo differs from the bytes sent", l.got)
	}
	l.got += int64(len(p))
	l.client.bytes.Add(int64(len(p)))
	return len(p), nil
}

// sockets returns one address of each type in d, and the server's flags for
// them.
func sockets(d string) (addrs []addr.Addr, flags []string) {
	for _, t := range []addr.Type{addr.Stream, addr.Seqpacket, addr.Datagram} {
		addrs = append(addrs, addr.Addr{Type: t, Path: d + "/" + string(t)})
		flags = append(flags, "--listen", string(t)+":"+string(t))
	}
	return addrs, flags
}
