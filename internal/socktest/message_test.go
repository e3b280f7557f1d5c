package socktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

// send sends from a raw socket.
func send(t *testing.T, fd int, message string) {
	t.Helper()
	check(t, unix.Sendto(fd, []byte(message), 0, nil))
}

// receiving are the ways to receive a message.
var receiving = map[string]func(t *testing.T, r *sock.Receiver, fd int) ([]byte, error){
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
}

// eachWay runs a test for both types and all ways to receive.
func eachWay(t *testing.T, test func(t *testing.T, a, b int, receive func(r *sock.Receiver) ([]byte, error))) {
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		for name, receive := range receiving {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				a, b := pair(t, typ)
				test(t, a, b, func(r *sock.Receiver) ([]byte, error) { return receive(t, r, b) })
			})
		}
	}
}

func TestReceiveGivesWholeMessagesInOrder(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, a, _ int, receive func(r *sock.Receiver) ([]byte, error)) {
		r := sock.NewReceiver(65536)
		for _, size := range []int{1, 0, 16, 0, 0, 17, 65536} {
			sent := bytes.Repeat([]byte{byte(size)}, size)
			send(t, a, "before")
			send(t, a, string(sent))
			if got, err := receive(r); err != nil || string(got) != "before" {
				t.Fatalf("received %q, %v", got, err)
			}
			if got, err := receive(r); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("a message of %d bytes was received as one of %d: %v", size, len(got), err)
			}
			if got, err := r.Receive(a); err != unix.EAGAIN || got != nil {
				t.Fatalf("without a message: %q, %v", got, err)
			}
		}
	})
}

func TestReceiveOfLargerMessageIsAnErrorWithTheLimitAndNeverAPrefix(t *testing.T) {
	t.Parallel()
	const rounds = 100
	sizes := []int{17, 1000, 200_000}
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		for name, receive := range receiving {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				a, b := pair(t, typ)
				r := sock.NewReceiver(16)
				for _, size := range sizes {
					larger := make([]byte, size)
					for range rounds {
						check(t, unix.Send(a, larger, 0))
						check(t, unix.Send(a, []byte("next"), 0))
						got, err := receive(t, r, b)
						if got != nil {
							t.Fatalf("received %q of a message that does not fit", got)
						}
						wantError(t, err, sock.ErrTruncated, strconv.Itoa(size)+" bytes, 16 fit")
						wantSize(t, err, size, 16)
						if got, err := receive(t, r, b); err != nil || string(got) != "next" {
							t.Fatalf("then received %q, %v", got, err)
						}
					}
				}
			})
		}
	}
}

// wantSize wants the error to contain the message's size and the limit.
func wantSize(t *testing.T, err error, size, limit int) {
	t.Helper()
	var e *sock.SizeError
	if !errors.As(err, &e) || e.Size != size || e.Limit != limit {
		t.Fatalf("%v does not report that %d bytes are more than %d", err, size, limit)
	}
}

func TestReceiverOfSizeZeroStillDistinguishesEmptyFromMore(t *testing.T) {
	t.Parallel()
	a, b := pair(t, sock.Datagram)
	r := sock.NewReceiver(0)
	send(t, a, "")
	if got, err := r.Receive(b); err != nil || len(got) > 0 {
		t.Errorf("received %q, %v", got, err)
	}
	send(t, a, "xx")
	_, err := r.Receive(b)
	wantError(t, err, sock.ErrTruncated)
}

// Not parallel: it counts the descriptors of the process.
func TestDescriptorsThatComeAlongAreRefusedAndNoneStaysOpen(t *testing.T) {
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer func() { _ = null.Close() }()
	for _, n := range []int{1, 4, 253} { // SCM_MAX_FD, unix(7)
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		eachWay(t, func(t *testing.T, a, _ int, receive func(r *sock.Receiver) ([]byte, error)) {
			r := sock.NewReceiver(100)
			before := descriptors(t)
			check(t, unix.Sendmsg(a, []byte("take these"), unix.UnixRights(fds...), nil, 0))
			send(t, a, "next")
			got, err := receive(r)
			if got != nil || !errors.Is(err, sock.ErrDescriptors) {
				t.Errorf("received %q, %v", got, err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors came along, and %d are open now, %d were", n, after, before)
			}
			if got, err := receive(r); err != nil || string(got) != "next" {
				t.Errorf("then received %q, %v", got, err)
			}
		})
	}
}

func TestDrainReportsWhetherAnythingIsLeft(t *testing.T) {
	t.Parallel()
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		for _, sent := range []string{"nothing", "", "some"} {
			for _, ended := range []bool{false, true} {
				fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
				check(t, err)
				if sent != "nothing" {
					check(t, unix.Send(fds[0], []byte(sent), 0))
				}
				if ended {
					check(t, unix.Shutdown(fds[0], unix.SHUT_RDWR))
				}
				want := sent == "nothing" || sent == "" && typ == unix.SOCK_STREAM
				if got := sock.Drain(fds[1]); got != want {
					t.Errorf("type %d, sent %q, ended %t: empty is %t", typ, sent, ended, got)
				}
				check(t, errors.Join(unix.Close(fds[0]), unix.Close(fds[1])))
			}
		}
	}
}

func TestReceiveRecordDistinguishesEmptyRecordFromTheEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(fd int) error{
		"half-closed": func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) },
		"closed":      unix.Close,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			a, b := fds[0], fds[1]
			defer func() { check(t, unix.Close(b)) }()
			r := sock.NewReceiver(100)
			_, ended, err := r.ReceiveRecord(b)
			if ended || err != unix.EAGAIN {
				t.Fatalf("before anything came: end %t, %v", ended, err)
			}
			records := []string{"", "one", "", "", "", "two", ""}
			for _, s := range records {
				send(t, a, s)
			}
			check(t, end(a))
			for i, want := range records {
				got, ended, err := r.ReceiveRecord(b)
				if err != nil || ended || string(got) != want {
					t.Fatalf("record %d is %q, end %t, %v, not %q", i, got, ended, err, want)
				}
			}
			for range 2 {
				if got, ended, err := r.ReceiveRecord(b); err != nil || !ended || len(got) > 0 {
					t.Errorf("at the end: %q, end %t, %v", got, ended, err)
				}
			}
			if name == "half-closed" {
				check(t, unix.Close(a))
			}
		})
	}
}

// received returns a receiver that has read one message of a datagram socket.
func received(t *testing.T, fd int) *sock.Receiver {
	t.Helper()
	r := sock.NewReceiver(100)
	_, err := r.ReceiveCred(fd)
	check(t, err)
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
			check(t, conn.SetDeadline(time.Now().Add(patience)))
			check(t, sock.ReplyTo(s.FD(), []byte("one"), r.Peek()))
			check(t, sock.ReplyTo(s.FD(), []byte("two"), r.Sender()))
			for _, want := range []string{"one", "two"} {
				if got, err := conn.Receive(sock.NewReceiver(100)); err != nil || string(got) != want {
					t.Errorf("%q: received %q, %v", name, got, err)
				}
			}
		}
		check(t, conn.Close())
	}
}

// The addresses as recvmsg(2) writes them; a machine may lack IPv6.
func TestSenderString(t *testing.T) {
	t.Parallel()
	family := func(f uint16) string { return string(binary.NativeEndian.AppendUint16(nil, f)) }
	ip6 := net.ParseIP("2001:db8::1").To16()
	for _, tt := range []struct{ raw, want string }{
		{"", ""},
		{"\x01", ""},
		{family(unix.AF_UNIX), ""},
		{family(unix.AF_UNIX) + "/run/c\x00", "/run/c"},
		{family(unix.AF_UNIX) + "c", "c"},
		{family(unix.AF_UNIX) + "\x00name", "@name"},
		{family(unix.AF_UNIX) + "\x00na\x00me", "@na\x00me"},
		{family(unix.AF_UNIX) + "\x00", "@"},
		{family(unix.AF_INET) + "\x1b\x58" + "\x7f\x00\x00\x01" + strings.Repeat("\x00", 8), "127.0.0.1:7000"},
		{family(unix.AF_INET6) + "\x1b\x58" + "\x00\x00\x00\x00" + string(ip6) + "\x00\x00\x00\x00", "[2001:db8::1]:7000"},
		{family(unix.AF_INET6) + "\x00\x01" + "\x00\x00\x00\x00" + string(net.IPv6loopback) + "\x00\x00\x00\x00", "[::1]:1"},
		{family(unix.AF_NETLINK) + "somebody", ""},
	} {
		if got := sock.Sender(tt.raw).String(); got != tt.want {
			t.Errorf("%q reads %q, not %q", tt.raw, got, tt.want)
		}
	}
}

// The kernel lets a client bind any bytes.
func FuzzSender(f *testing.F) {
	for _, s := range []string{"", "\x01", "\x01\x00", "\x01\x00/run/c\x00", "\x01\x00\x00na\x00me", "\x01\x00\x00", "\x01\x00\x1b[2J",
		"\x02\x00\x1b\x58\x7f\x00\x00\x01", "\x0a\x00\x1b\x58", "\x10\x00somebody"} {
		f.Add(s)
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
	err := sock.PassCred(-1)
	wantError(t, err, unix.EBADF, "SO_PASSCRED")
}

// The server uses a Receiver for each message.
//
// Not parallel: it counts the allocations of the process.
func TestReceiveAndReplyDoNotAllocate(t *testing.T) {
	s := listen(t, sock.ListenConfig{}, datagram(sock.AutoName("@")))
	check(t, sock.PassCred(s.FD()))
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer func() { check(t, unix.Close(client)) }()
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

func TestReplyErrorsAreErrnos(t *testing.T) {
	t.Parallel()
	d := dir(t)
	s := listen(t, sock.ListenConfig{SendBuffer: 5000}, datagram(d+"/s"))
	// Not connected, so that its queue has a limit.
	client, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d + "/client", Net: "unixgram"})
	check(t, err)
	_, err = client.WriteTo([]byte("hello"), &net.UnixAddr{Name: d + "/s", Net: "unixgram"})
	check(t, err)
	r := received(t, s.FD())
	if err := sock.ReplyTo(s.FD(), make([]byte, 10_000), r.Peek()); err != unix.EMSGSIZE {
		t.Errorf("a reply larger than the send buffer: %v", err)
	}
	for err = nil; err == nil; err = sock.ReplyTo(s.FD(), nil, r.Peek()) {
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

func TestMaxMessageIsWhatAnyUserCanSend(t *testing.T) {
	t.Parallel()
	a, _ := pair(t, sock.Datagram)
	wmem := testkit.Setting(t, "core/wmem_max")
	check(t, sock.SetSendBuffer(a, 2*wmem))
	limit, err := sock.SendLimit(a)
	check(t, err)
	if limit != sock.MaxMessage() || limit != 2*wmem-32 {
		t.Errorf("the largest send buffer is for %d bytes, MaxMessage is %d, wmem_max %d", limit, sock.MaxMessage(), wmem)
	}
}

func TestGrowSendBufferAsFarAsTheSystemAllows(t *testing.T) {
	t.Parallel()
	addr := sock.Addr{Type: sock.Stream, Path: dir(t) + "/s"}
	listen(t, sock.ListenConfig{}, addr)
	conn := dial(t, addr)
	wmem := testkit.Setting(t, "core/wmem_max")
	limit := func() (n int) {
		raw, err := conn.SyscallConn()
		check(t, err)
		check(t, raw.Control(func(fd uintptr) { n, err = sock.SendLimit(int(fd)) }))
		check(t, err)
		return n + 32
	}
	before := limit()
	conn.GrowSendBuffer(before - 1)
	if n := limit(); n != before {
		t.Errorf("%d bytes became %d", before, n)
	}
	conn.GrowSendBuffer(2*wmem + 2)
	if n := limit(); n != 2*wmem {
		t.Errorf("%d bytes became %d, and the system allows %d", before, n, 2*wmem)
	}
}

func TestSetSendBufferOverTheSystemsLimit(t *testing.T) {
	t.Parallel()
	a, _ := pair(t, sock.Seqpacket)
	wmem := testkit.Setting(t, "core/wmem_max")
	err := sock.SetSendBuffer(a, 2*wmem+1)
	if err == nil {
		t.Fatal("no error")
	}
	testkit.WantWords(t, err.Error(), fmt.Sprintf("send buffer of %d bytes: the system allows %d; raise net.core.wmem_max", 2*wmem+1, 2*wmem))
	wantError(t, sock.SetSendBuffer(-1, 5000), unix.EBADF, "SO_SNDBUF")

	d := dir(t)
	_, err = sock.ListenConfig{SendBuffer: 2*wmem + 1}.Listen(datagram(d + "/s"))
	if err == nil {
		t.Fatal("no error")
	}
	testkit.WantWords(t, err.Error(), "listen datagram:"+d+"/s: send buffer of ", strconv.Itoa(2*wmem))
	testkit.WantFiles(t, d)
	s := listen(t, sock.ListenConfig{}, datagram(d+"/s"))
	_, err = sock.Dial(t.Context(), s.Addr(), sock.DialConfig{Bind: d + "/client", SendBuffer: 2*wmem + 1})
	if err == nil {
		t.Fatal("no error")
	}
	testkit.WantWords(t, err.Error(), "connect datagram:"+d+"/s: ", "send buffer of ", strconv.Itoa(2*wmem))
	testkit.WantGone(t, d+"/client")
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
		wantError(t, sock.ExplainSize(a, limit+1, err), unix.EMSGSIZE, "EMSGSIZE",
			fmt.Sprintf("%d bytes, the socket sends at most %d; raise SO_SNDBUF", limit+1, limit))
	}
	if err := sock.ExplainSize(a, 1, unix.EPIPE); err != unix.EPIPE {
		t.Errorf("another error becomes %v", err)
	}
	_, err := sock.SendLimit(-1)
	wantError(t, err, unix.EBADF)
}

// Not parallel: it counts what the process allocates.
func TestF25OversizeMessageIsAnErrorWithTheLimit(t *testing.T) {
	const rounds = 100
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			s := listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: dir(t) + "/s"})
			// The default, unless net.core.wmem_default was changed.
			conn, err := sock.Dial(t.Context(), s.Addr(), sock.DialConfig{SendBuffer: 212_992})
			check(t, err)
			defer func() { check(t, conn.Close()) }()
			check(t, conn.SetDeadline(time.Now().Add(patience)))
			fd := s.FD()
			if typ == sock.Seqpacket {
				fd, _, err = unix.Accept(s.FD())
				check(t, err)
				defer func() { check(t, unix.Close(fd)) }()
			}
			// One byte more than fits, and one byte more than the receiver's
			// size, from a peer that may send larger messages than others.
			small := sock.NewReceiver(212_959)
			whole, larger := make([]byte, 212_960), make([]byte, 212_961)
			receiver := sock.NewReceiver(sock.MaxMessage())
			before := allocated()
			for range rounds {
				err := conn.Send(larger)
				wantError(t, err, unix.EMSGSIZE, "212961 bytes, the socket sends at most 212960; raise SO_SNDBUF")
				wantSize(t, err, 212_961, 212_960)
				check(t, conn.Send(whole))
				_, err = small.Receive(fd)
				wantSize(t, err, 212_960, 212_959)
				check(t, conn.Send(whole))
				if message, err := receiver.ReceiveCred(fd); err != nil || len(message) != len(whole) {
					t.Fatalf("received %d bytes, %v", len(message), err)
				}
			}
			// A buffer of its own for each message would take 20 MB and more.
			if n := allocated() - before; n > rounds*10_000 {
				t.Errorf("%d messages cost %d bytes of memory", 2*rounds, n)
			}
		})
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F25",
		Done:    "datagrams and records of one byte more than the socket sends, and of one byte more than the receiver holds",
		Count:   4 * rounds,
		Outcome: "each an error that names both numbers; no memory taken for it; the next message of the largest size received",
	})
}

// allocated returns how many bytes this process has allocated so far.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestConnReceivesMessagesAndThenTheEnd(t *testing.T) {
	t.Parallel()
	s := listen(t, sock.ListenConfig{}, sock.Addr{Type: sock.Seqpacket, Path: dir(t) + "/s"})
	conn := dial(t, s.Addr())
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	fd, _, err := unix.Accept(s.FD())
	check(t, err)
	for _, record := range []string{"one", "", "two", ""} {
		send(t, fd, record)
	}
	check(t, unix.Close(fd))
	r := sock.NewReceiver(100)
	for _, want := range []string{"one", "", "two", ""} {
		if got, err := conn.Receive(r); err != nil || string(got) != want {
			t.Fatalf("received %q, %v, not %q", got, err, want)
		}
	}
	if got, err := conn.Receive(r); err != io.EOF || got != nil {
		t.Errorf("at the end: %q, %v", got, err)
	}
	if err := conn.Send(nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("sent to an address without a server: %v", err)
	}
}

func TestConnReceiveAndSendWaitNoLongerThanTheDeadline(t *testing.T) {
	t.Parallel()
	for _, typ := range []sock.Type{sock.Datagram, sock.Seqpacket} {
		conn := dial(t, listen(t, sock.ListenConfig{}, sock.Addr{Type: typ, Path: dir(t) + "/s"}).Addr())
		check(t, conn.SetDeadline(time.Now().Add(50*time.Millisecond)))
		if _, err := conn.Receive(sock.NewReceiver(100)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: receive: %v", typ, err)
		}
		var err error
		for err == nil {
			err = conn.Send([]byte("fill it"))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: send: %v", typ, err)
		}
	}
}
