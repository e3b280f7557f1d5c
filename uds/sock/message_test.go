//go:build linux

package sock_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// eachWay runs a test for both types of messages and all ways to receive one.
func eachWay(t *testing.T, test func(t *testing.T, a int, receive func(*sock.Receiver) ([]byte, error))) {
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		for name, receive := range map[string]func(t *testing.T, r *sock.Receiver, fd int) ([]byte, error){
			"alone": func(_ *testing.T, r *sock.Receiver, fd int) ([]byte, error) { return r.Receive(fd) },
			"with credentials": func(t *testing.T, r *sock.Receiver, fd int) ([]byte, error) {
				check(t, sock.PassCred(fd))
				return r.ReceiveCred(fd)
			},
			"as a record": func(t *testing.T, r *sock.Receiver, fd int) ([]byte, error) {
				record, end, err := r.ReceiveRecord(fd)
				if end {
					t.Error("a message is taken for the end")
				}
				return record, err
			},
		} {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				a, b := pair(t, typ)
				test(t, a, func(r *sock.Receiver) ([]byte, error) { return receive(t, r, b) })
			})
		}
	}
}

func TestReceiveGivesWholeMessagesInOrder(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, a int, receive func(*sock.Receiver) ([]byte, error)) {
		r := sock.NewReceiver(65536)
		for _, size := range []int{1, 0, 16, 0, 0, 17, 65536} {
			sent := strings.Repeat("x", size)
			send(t, a, "before")
			send(t, a, sent)
			for _, want := range []string{"before", sent} {
				got, err := receive(r)
				wantMessage(t, want, got, err)
			}
			if got, err := r.Receive(a); err != unix.EAGAIN || got != nil {
				t.Fatalf("without a message: %q, %v", got, err)
			}
		}
	})
}

func TestReceiveOfLargerMessageIsAnErrorWithTheLimitAndNeverAPrefix(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, a int, receive func(*sock.Receiver) ([]byte, error)) {
		r := sock.NewReceiver(16)
		for _, size := range []int{17, 1000, 200_000} {
			for range 100 {
				send(t, a, strings.Repeat("x", size))
				send(t, a, "next")
				got, err := receive(r)
				if got != nil {
					t.Fatalf("received %q of a message that does not fit", got)
				}
				wantSize(t, err, sock.ErrTruncated, size, 16)
				got, err = receive(r)
				wantMessage(t, "next", got, err)
			}
		}
	})
	a, b := pair(t, sock.Datagram)
	r := sock.NewReceiver(0)
	send(t, a, "")
	got, err := r.Receive(b)
	wantMessage(t, "", got, err)
	send(t, a, "xx")
	wantError(t, testkit.Err(r.Receive(b)), sock.ErrTruncated)
}

// wantSize wants an error that contains the message's size and the limit.
func wantSize(t *testing.T, err, target error, size, limit int) {
	t.Helper()
	words := map[error]string{sock.ErrTruncated: "%d bytes, %d fit", unix.EMSGSIZE: "%d bytes, the socket sends at most %d; raise SO_SNDBUF"}
	wantError(t, err, target, fmt.Sprintf(words[target], size, limit))
	var e *sock.SizeError
	if !errors.As(err, &e) || e.Size != size || e.Limit != limit {
		t.Fatalf("%v does not report that %d bytes are more than %d", err, size, limit)
	}
}

// Not parallel: it counts the descriptors of the process.
func TestDescriptorsThatComeAlongAreRefusedAndNoneStaysOpen(t *testing.T) {
	for _, n := range []int{1, 4, sock.MaxRights} {
		eachWay(t, func(t *testing.T, a int, receive func(*sock.Receiver) ([]byte, error)) {
			r := sock.NewReceiver(100)
			same := keepsDescriptors(t)
			check(t, unix.Sendmsg(a, []byte("take these"), copies(n, os.Stdin), nil, 0))
			send(t, a, "next")
			if got, err := receive(r); got != nil || !errors.Is(err, sock.ErrDescriptors) {
				t.Errorf("received %q, %v", got, err)
			}
			same()
			got, err := receive(r)
			wantMessage(t, "next", got, err)
		})
	}
}

// copies returns control data that sends a file n times.
func copies(n int, f *os.File) []byte {
	if n == 0 {
		return nil
	}
	return unix.UnixRights(slices.Repeat([]int{int(f.Fd())}, n)...)
}

func TestDrainReportsWhetherAnythingIsLeft(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Stream, sock.Seqpacket} {
		for _, sent := range []string{"nothing", "", "some"} {
			for _, ended := range []bool{false, true} {
				a, b := pair(t, typ)
				if sent != "nothing" {
					send(t, a, sent)
				}
				if ended {
					check(t, unix.Shutdown(a, unix.SHUT_RDWR))
				}
				want := sent == "nothing" || sent == "" && typ == sock.Stream
				if got := sock.Drain(b); got != want {
					t.Errorf("type %s, sent %q, ended %t: empty is %t", typ, sent, ended, got)
				}
			}
		}
	}
}

func TestReceiveRecordDistinguishesEmptyRecordFromTheEnd(t *testing.T) {
	t.Parallel()
	for _, how := range []int{unix.SHUT_WR, unix.SHUT_RDWR} {
		a, b := pair(t, sock.Seqpacket)
		r := sock.NewReceiver(100)
		if _, ended, err := r.ReceiveRecord(b); ended || err != unix.EAGAIN {
			t.Fatalf("before anything came: end %t, %v", ended, err)
		}
		records := []string{"", "one", "", "", "", "two", ""}
		for _, s := range records {
			send(t, a, s)
		}
		check(t, unix.Shutdown(a, how))
		for _, want := range records {
			got, ended, err := r.ReceiveRecord(b)
			wantMessage(t, want, got, err)
			if ended {
				t.Fatalf("%q is taken for the end", want)
			}
		}
		for range 2 {
			if got, ended, err := r.ReceiveRecord(b); err != nil || !ended || len(got) > 0 {
				t.Errorf("at the end: %q, end %t, %v", got, ended, err)
			}
		}
	}
}

// received returns a receiver that has read one message of a datagram socket.
func received(t *testing.T, fd int) *sock.Receiver {
	t.Helper()
	r := sock.NewReceiver(100)
	check(t, testkit.Err(r.ReceiveCred(fd)))
	return r
}

func TestSenderIsTheSenderOfTheLastMessage(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, sock.ListenConfig{}, datagram(d+"/s"))
	longest := d + "/" + strings.Repeat("c", sock.MaxPath-len(d)-1)
	for _, name := range []string{d + "/client", longest, sock.AutoName("@"), "@" + strings.Repeat("c", 106), ""} {
		conn, err := sock.Dial(t.Context(), s.Addr(), sock.DialConfig{Bind: name})
		check(t, err)
		check(t, conn.Send([]byte("hello")))
		r := received(t, s.FD())
		if got := r.Sender().String(); got != name {
			t.Errorf("the sender is %q, not %q", got, name)
		}
		if want := name != "" && name[0] != '@'; r.Peek() != r.Sender() || r.Sender().IsPath() != want {
			t.Errorf("%q is a path: %t", name, !want)
		} else if want && sock.Path(name).String() != name {
			t.Errorf("the address of %q is %q", name, sock.Path(name))
		}
		if r.Named() != (name != "") {
			t.Errorf("%q: named is %t", name, r.Named())
		}
		if name != "" {
			check(t, sock.ReplyTo(s.FD(), []byte("one"), r.Peek()))
			check(t, sock.ReplyTo(s.FD(), []byte("two"), r.Sender()))
			for _, want := range []string{"one", "two"} {
				got, err := conn.Receive(sock.NewReceiver(100))
				wantMessage(t, want, got, err)
			}
		}
		check(t, conn.Close())
	}
}

// senders are addresses as recvmsg(2) writes them; a machine may lack IPv6.
var senders = map[string]string{
	"":                     "",
	"\x01":                 "",
	"\x01\x00":             "",
	"\x01\x00/run/c\x00":   "/run/c",
	"\x01\x00c":            "c",
	"\x01\x00\x00name":     "@name",
	"\x01\x00\x00na\x00me": "@na\x00me",
	"\x01\x00\x00":         "@",
	"\x01\x00\x1b[2J":      "\x1b[2J",
	"\x0a\x00\x1b\x58":     "[::]:7000",
	"\x10\x00somebody":     "",
	"\x02\x00\x1b\x58\x7f\x00\x00\x01" + strings.Repeat("\x00", 8):                                      "127.0.0.1:7000",
	"\x0a\x00\x1b\x58\x00\x00\x00\x00" + string(net.ParseIP("2001:db8::1").To16()) + "\x00\x00\x00\x00": "[2001:db8::1]:7000",
	"\x0a\x00\x00\x01\x00\x00\x00\x00" + string(net.IPv6loopback) + "\x00\x00\x00\x00":                  "[::1]:1",
}

// The kernel lets a client bind any bytes.
func FuzzSender(f *testing.F) {
	for raw, want := range senders {
		f.Add(raw)
		if got := sock.Sender(raw).String(); got != want {
			f.Errorf("%q reads %q, not %q", raw, got, want)
		}
	}
	f.Fuzz(func(t *testing.T, raw string) {
		name := sock.Sender(raw).String()
		var family uint16
		if len(raw) > 2 {
			family = binary.NativeEndian.Uint16([]byte(raw))
		}
		ok := name == ""
		switch family {
		case unix.AF_UNIX:
			if bound := raw[2:]; bound[0] == 0 {
				ok = name == "@"+bound[1:]
			} else {
				ok = strings.HasPrefix(bound, name) && (name == bound || bound[len(name)] == 0) && !strings.Contains(name, "\x00")
			}
		case unix.AF_INET, unix.AF_INET6:
			_, err := netip.ParseAddrPort(name)
			ok = err == nil
		}
		if !ok {
			t.Fatalf("%q reads %q", raw, name)
		}
	})
}

func TestReceiveAloneHasNoCredentials(t *testing.T) {
	t.Parallel()
	a, b := pair(t, sock.Datagram)
	send(t, a, "hello")
	if cred, ok := received(t, b).Cred(); ok {
		t.Errorf("without a request, the credentials are %+v", cred)
	}
	wantError(t, sock.PassCred(-1), unix.EBADF, "SO_PASSCRED")
}

// The server uses a Receiver for each message.
//
// Not parallel: it counts the allocations of the process.
func TestReceiveAndReplyDoNotAllocate(t *testing.T) {
	s := listen(t, sock.ListenConfig{}, datagram(sock.AutoName("@")))
	client := socket(t, sock.Datagram)
	check(t, unix.Bind(client, &unix.SockaddrUnix{Name: sock.AutoName("@")}))
	check(t, unix.Connect(client, &unix.SockaddrUnix{Name: s.Addr().Path}))

	r, sent, back := sock.NewReceiver(1000), make([]byte, 1000), make([]byte, 1000)
	allocs := testing.AllocsPerRun(1000, func() {
		if _, err := unix.Write(client, sent); err != nil {
			t.Fatal(err)
		}
		message, err := r.ReceiveCred(s.FD())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := r.Cred(); !ok || !r.Named() {
			t.Fatal("it has no sender")
		}
		if err := sock.ReplyTo(s.FD(), message, r.Peek()); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(client, back); err != nil || n != len(sent) {
			t.Fatal(n, err)
		}
	})
	if allocs != 0 {
		t.Errorf("a message costs %v allocations", allocs)
	}
}

// Not parallel: a child that is being started would hold a socket open for a
// moment.
func TestReplyErrorsAreErrnos(t *testing.T) {
	d := dir(t)
	s := listen(t, sock.ListenConfig{SendBuffer: 5000}, datagram(d+"/s"))
	// Not connected, so that its queue has a limit.
	client, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/client", Net: "unixgram"})
	check(t, err)
	check(t, testkit.Err(client.WriteTo([]byte("hello"), &net.UnixAddr{Name: d + "/s", Net: "unixgram"})))
	r := received(t, s.FD())
	if err := sock.ReplyTo(s.FD(), make([]byte, 10_000), r.Peek()); err != unix.EMSGSIZE {
		t.Errorf("a reply larger than the send buffer: %v", err)
	}
	for err == nil {
		err = sock.ReplyTo(s.FD(), nil, r.Peek())
	}
	if err != unix.EAGAIN {
		t.Errorf("the client's queue is full: %v", err)
	}
	check(t, client.Close())
	if err := sock.ReplyTo(s.FD(), nil, r.Peek()); err != unix.ECONNREFUSED {
		t.Errorf("the client is closed: %v", err)
	}
	check(t, os.Remove(d+"/client"))
	if err := sock.ReplyTo(s.FD(), nil, r.Sender()); err != unix.ENOENT {
		t.Errorf("the client is gone: %v", err)
	}
}

// wmemMax returns the limit of SO_SNDBUF that the kernel then doubles.
func wmemMax(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/core/wmem_max")
	check(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	check(t, err)
	return n
}

func TestSendBufferUpToTheSystemsLimit(t *testing.T) {
	t.Parallel()
	most := 2 * wmemMax(t)
	a, _ := pair(t, sock.Datagram)
	check(t, sock.SetSendBuffer(a, most))
	if limit, err := sock.SendLimit(a); err != nil || limit != sock.MaxMessage() || limit != most-32 {
		t.Errorf("the largest send buffer is for %d bytes, MaxMessage is %d, twice wmem_max %d, %v", limit, sock.MaxMessage(), most, err)
	}
	words := fmt.Sprintf("send buffer of %d bytes: the system allows %d; raise net.core.wmem_max", most+1, most)
	wantError(t, sock.SetSendBuffer(a, most+1), nil, words)
	wantError(t, sock.SetSendBuffer(-1, 5000), unix.EBADF, "SO_SNDBUF")

	d := dir(t)
	wantError(t, testkit.Err(sock.ListenConfig{SendBuffer: most + 1}.Listen(datagram(d+"/s"))), nil, "listen datagram:"+d+"/s: "+words)
	wantFiles(t, d)
	s := listen(t, sock.ListenConfig{}, datagram(d+"/s"))
	wantError(t, dialError(s.Addr(), sock.DialConfig{Bind: d + "/client", SendBuffer: most + 1}), nil, "connect datagram:"+d+"/s: ", words)
	wantFiles(t, d, ".s.lock", "s")

	conn := dial(t, s.Addr())
	raw, err := conn.SyscallConn()
	check(t, err)
	limit := func() (n int) {
		check(t, raw.Control(func(fd uintptr) { n, err = sock.SendLimit(int(fd)) }))
		check(t, err)
		return n + 32
	}
	before := limit()
	for _, tt := range []struct{ ask, want int }{{before - 1, before}, {most + 2, most}} {
		conn.GrowSendBuffer(tt.ask)
		if n := limit(); n != tt.want {
			t.Errorf("%d bytes became %d, of %d; the system allows %d", before, n, tt.ask, most)
		}
	}
}

func TestSendLimitIs32BytesLessThanTheSendBuffer(t *testing.T) {
	t.Parallel()
	a, b := pair(t, sock.Seqpacket)
	for _, buffer := range []int{5000, 5001, 100_000, 300_000} {
		check(t, sock.SetSendBuffer(a, buffer))
		limit, err := sock.SendLimit(a)
		check(t, err)
		if limit < buffer-32 || limit > buffer+1-32 {
			t.Errorf("a send buffer of %d is for %d bytes", buffer, limit)
		}
		send(t, a, strings.Repeat("x", limit))
		if n, err := unix.Read(b, make([]byte, limit+1)); err != nil || n != limit {
			t.Errorf("%d of %d bytes came: %v", n, limit, err)
		}
		err = unix.Send(a, make([]byte, limit+1), 0)
		if err != unix.EMSGSIZE {
			t.Errorf("one byte more: %v", err)
		}
		wantSize(t, sock.ExplainSize(a, limit+1, err), unix.EMSGSIZE, limit+1, limit)
	}
	if err := sock.ExplainSize(a, 1, unix.EPIPE); err != unix.EPIPE {
		t.Errorf("another error becomes %v", err)
	}
	wantError(t, testkit.Err(sock.SendLimit(-1)), unix.EBADF)
}

// Not parallel: it counts what the process allocates.
func TestF25OversizeMessageIsAnErrorWithTheLimit(t *testing.T) {
	const rounds = 100
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		s := listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: dir(t) + "/s"})
		// The default, unless net.core.wmem_default was changed.
		conn, err := sock.Dial(t.Context(), s.Addr(), sock.DialConfig{SendBuffer: 212_992})
		check(t, err)
		defer func() { check(t, conn.Close()) }()
		fd := accept(t, s.Addr(), s.FD())
		// One byte more than fits, and one byte more than the receiver's
		// size, from a peer that may send larger messages than others.
		small := sock.NewReceiver(212_959)
		whole, larger := make([]byte, 212_960), make([]byte, 212_961)
		receiver := sock.NewReceiver(sock.MaxMessage())
		before := allocated()
		for range rounds {
			wantSize(t, conn.Send(larger), unix.EMSGSIZE, 212_961, 212_960)
			check(t, conn.Send(whole))
			wantSize(t, testkit.Err(small.Receive(fd)), sock.ErrTruncated, 212_960, 212_959)
			check(t, conn.Send(whole))
			if message, err := receiver.ReceiveCred(fd); err != nil || !bytes.Equal(message, whole) {
				t.Fatalf("received %d bytes, %v", len(message), err)
			}
		}
		// A buffer of its own for each message would take 20 MB and more.
		if n := allocated() - before; n > rounds*10_000 {
			t.Errorf("%d messages cost %d bytes of memory", 2*rounds, n)
		}
	}
	testkit.ReportFault(t, "F25", 4*rounds,
		"datagrams and records of one byte more than the socket sends, and of one byte more than the receiver holds",
		"each an error that names both numbers; no memory taken for it; the next message of the largest size received")
}

// allocated returns how many bytes this process has allocated so far.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
