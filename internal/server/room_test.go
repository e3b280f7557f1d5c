package server_test

import (
	"bytes"
	"io"
	"sync"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// Clients that send and do not read make the server hold no more than the limit
// of all together, others are served meanwhile, and in the end everybody gets
// everything back.
func TestF55ClientsThatDoNotReadShareTheMemory(t *testing.T) {
	t.Parallel()
	const limit, clients = 8 << 20, 60
	for typ, sizes := range map[addr.Type][]int{
		addr.Stream:    {16, 1000, 60_000},
		addr.Seqpacket: {16, 9000, 60_000, 200_000},
	} {
		for _, size := range sizes {
			t.Run(string(typ), func(t *testing.T) {
				t.Parallel()
				pool := server.NewPool(limit, clients+1, 1, sock.DefaultSendBuffer())
				counted := new(server.Stats)
				srv := serveSocket(t, listenOn(t, typ), config{Chunk: 16 << 10, Memory: pool, Stats: counted}, zerolog.WarnLevel)
				message := bytes.Repeat([]byte{byte(size)}, size)
				honest := dial(t, srv.Addr)
				var behind [clients]*sock.Conn
				var sent [clients]int
				for i := range behind {
					behind[i] = dial(t, srv.Addr)
				}
				for quiet := 0; quiet < 3; quiet++ {
					for i, conn := range behind {
						for n := sendNow(t, conn, message); n > 0; n = sendNow(t, conn, message) {
							sent[i] += n
							quiet = 0
						}
					}
					wantEcho(t, honest, "hello") // the server has had its turn
				}
				if held := int(counted.Bytes.Load()); held > limit/8*5 {
					t.Errorf("the server holds %d bytes of %d clients; it may use %d", held, clients, limit)
				}
				var all sync.WaitGroup
				for i, conn := range behind {
					all.Go(func() {
						r := sock.NewReceiver(size)
						for left := sent[i]; left > 0; {
							var back []byte
							var err error
							if typ == addr.Seqpacket {
								back, err = conn.Receive(r)
							} else {
								back = make([]byte, min(left, 64<<10))
								_, err = io.ReadFull(conn, back)
							}
							if left -= len(back); err != nil || left < 0 || bytes.Count(back, message[:1]) != len(back) {
								t.Errorf("%d bytes, %d are missing: %v", len(back), left, err)
								return
							}
						}
					})
				}
				all.Wait()
				if got := refusals(counted); len(got) > 0 {
					t.Errorf("refused: %v", got)
				}
			})
		}
	}
}

// sendNow sends what the socket takes now, and returns how much.
func sendNow(t *testing.T, conn *sock.Conn, message []byte) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), message, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}))
	if err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return max(n, 0)
}
