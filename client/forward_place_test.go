package main_test

import (
	"crypto/sha256"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
)

// Descriptors arrive with the bytes that they were sent with, whatever was sent
// before and after: PulseAudio gives a descriptor to a frame, and so do others.
func TestF52DescriptorsKeepTheirPlace(t *testing.T) {
	t.Parallel()
	d := dir(t)
	conns := make(chan halfCloser)
	done := make(chan bool)
	serveAt(t, d, "stream:s", func(conn halfCloser) {
		conns <- conn
		<-done
	})
	forward(t, d, "stream:r", "stream:s", "--pass-files")
	files := make([]*os.File, 8) // distinguished by their sizes
	for i := range files {
		var err error
		files[i], err = os.Create(fmt.Sprintf("%s/f%d", d, i))
		check(t, err)
		defer func() { _ = files[i].Close() }()
		check(t, files[i].Truncate(int64(i)))
	}
	r := mathrand.New(mathrand.NewPCG(1, 2))
	count := 0
	for round := range testkit.Count(4, 20) {
		client := dialAt(t, d, "stream:r")
		target := <-conns
		from, to := client, target
		if round%2 == 1 {
			from, to = to, from
		}
		type place struct {
			at    int   // the offset of the first byte that has descriptors
			files []int // their sizes
		}
		var want, got []place
		var said []byte
		var sending errgroup.Group
		for range 100 { // what to send, so that nothing but sending takes time
			size, some := 1+r.IntN(2000), 0
			if r.IntN(3) == 0 {
				some = 1 + r.IntN(3)
			}
			p := place{at: len(said)}
			for range some {
				p.files = append(p.files, r.IntN(len(files)))
			}
			want = append(want, p)
			for range size {
				said = append(said, byte(r.Uint32()))
			}
		}
		sending.Go(func() error {
			for i, p := range want {
				end := len(said)
				if i+1 < len(want) {
					end = want[i+1].at
				}
				var rights []byte
				if p.files != nil {
					fds := make([]int, len(p.files))
					for i, n := range p.files {
						fds[i] = int(files[n].Fd())
					}
					rights = unix.UnixRights(fds...)
				}
				for piece := said[p.at:end]; len(piece) > 0; rights = nil {
					n, _, err := from.(*net.UnixConn).WriteMsgUnix(piece, rights, nil)
					if err != nil {
						return err
					}
					piece = piece[n:]
				}
			}
			return from.CloseWrite()
		})
		hash := sha256.New()
		buf, oob := make([]byte, 1), make([]byte, 100)
		for at := 0; ; at++ { // byte by byte
			n, oobn, _, _, err := to.(*net.UnixConn).ReadMsgUnix(buf, oob)
			if n == 0 {
				break
			}
			check(t, err)
			_, _ = hash.Write(buf)
			if oobn == 0 {
				continue
			}
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			check(t, err)
			fds, err := unix.ParseUnixRights(&messages[0])
			check(t, err)
			p := place{at: at}
			for _, fd := range fds {
				var st unix.Stat_t
				check(t, unix.Fstat(fd, &st))
				p.files = append(p.files, int(st.Size))
				check(t, syscall.Close(fd))
			}
			got = append(got, p)
			count += len(fds)
		}
		check(t, sending.Wait())
		want = slices.DeleteFunc(want, func(p place) bool { return p.files == nil })
		if !slices.EqualFunc(got, want, func(a, b place) bool { return a.at == b.at && slices.Equal(a.files, b.files) }) {
			t.Errorf("descriptors came at %v\nwere sent at %v", got, want)
		}
		if [32]byte(hash.Sum(nil)) != sha256.Sum256(said) {
			t.Error("other bytes came")
		}
		check(t, client.Close())
		done <- true
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F52", Count: count,
		Done:    "descriptors between and with bytes of all lengths through a stream, in both directions, received byte by byte",
		Outcome: "each came with the first byte of its own message, and in order",
	})
}
