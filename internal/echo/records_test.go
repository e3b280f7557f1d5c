package echo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/echo/echotest"
	"github.com/udsecho/udsecho/uds/sock"
)

// wantRecords receives records that must be these, and then the end.
func wantRecords(t *testing.T, conn *sock.Conn, records []string) {
	t.Helper()
	r := sock.NewReceiver(sock.MaxMessage())
	for i, want := range records {
		got, err := conn.Receive(r)
		if err != nil {
			t.Fatalf("record %d of %d: %v", i, len(records), err)
		}
		if string(got) != want {
			t.Fatalf("record %d of %d is one of %d bytes, not of %d", i, len(records), len(got), len(want))
		}
	}
	if got, err := conn.Receive(r); err != io.EOF {
		t.Fatalf("after %d records came one more, %q, %v", len(records), got, err)
	}
}

func TestEmptyRecordsBeforeHalfCloseAllComeBack(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{}, zerolog.Disabled)
	for _, records := range [][]string{{}, {""}, {"", "", ""}, {"one", ""}, {"", "one", "", "", "two", "", "", ""}} {
		for range 20 { // the end may arrive before or after the server gets to it
			conn := dial(t, srv.Addr)
			for _, r := range records {
				check(t, conn.Send([]byte(r)))
			}
			check(t, conn.CloseWrite())
			wantRecords(t, conn, records)
			check(t, conn.Close())
		}
	}
}

// The server finds all the records and the end when it starts, and can send
// back only a few of them at a time.
func TestHalfCloseOfClientThatIsBehindLosesNothing(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]string{"after a record": "last", "after an empty one": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := listenOn(t, addr.Seqpacket)
			conn := dial(t, socket.Addr)
			var records []string
			for i := range 50 {
				records = append(records, fmt.Sprintf("%01000d", i), "")
			}
			records = append(records, last)
			for _, r := range records {
				check(t, conn.Send([]byte(r)))
			}
			check(t, conn.CloseWrite())
			serveSocket(t, socket, config{SendBuffer: 5000}, zerolog.Disabled)
			wantRecords(t, conn, records)
		})
	}
}

func TestSeqpacketClientThatNeverReadsStopsNoOtherClient(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{}, zerolog.Disabled)
	lazy := dial(t, srv.Addr)
	check(t, lazy.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	var taken []string
	for {
		record := fmt.Sprintf("%05000d", len(taken))
		if err := lazy.Send([]byte(record)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%d records were taken from a client that does not read: %v", len(taken), err)
			}
			break
		}
		taken = append(taken, record)
	}
	r := sock.NewReceiver(100)
	for range 10 {
		wantBack(t, dial(t, srv.Addr), r, message)
	}
	check(t, lazy.CloseWrite())
	wantRecords(t, lazy, taken)
}

func TestManySeqpacketClientsAtOnceGetTheirOwnRecords(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{}, zerolog.Disabled)
	var clients sync.WaitGroup
	for i := range 10 {
		conn := dial(t, srv.Addr)
		clients.Go(func() {
			sent, err := io.ReadAll(random(byte(i), 500_000))
			if err != nil {
				t.Error(err)
				return
			}
			out := &bytes.Buffer{}
			client := echo.Client{Chunk: 1000 + i, Window: 8, Log: zerolog.Nop()}
			if err := client.Copy(t.Context(), conn, bytes.NewReader(sent), out); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(out.Bytes(), sent) {
				t.Errorf("client %d got other bytes than it sent", i)
			}
		})
	}
	clients.Wait()
}

func TestRecordLargerThanTheServersSendBufferIsAnErrorWithTheLimit(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{SendBuffer: 5000}, zerolog.InfoLevel)
	conn := dial(t, srv.Addr)
	check(t, conn.Send(make([]byte, 4968)))
	if got, err := conn.Receive(sock.NewReceiver(sock.MaxMessage())); err != nil || len(got) != 4968 {
		t.Fatalf("received %d bytes: %v", len(got), err)
	}
	err := quiet(0).Message(t.Context(), conn, make([]byte, 4969), io.Discard)
	wantWords(t, err, "received 0 messages, but not the next one of 4969 bytes, before the server closed the connection")
	srv.Log.Await(t, 1, "lost the connection: message too long (EMSGSIZE): 4969 bytes, the socket sends at most 4968; raise SO_SNDBUF")
	wantBack(t, dial(t, srv.Addr), sock.NewReceiver(100), message)
}

func TestRecordWithDescriptorsEndsTheConnectionAndNothingElse(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{}, zerolog.InfoLevel)
	conn := dial(t, srv.Addr)
	echotest.SendDescriptor(t, conn.Conn, nil)
	if got, err := conn.Receive(sock.NewReceiver(100)); err != io.EOF {
		t.Errorf("received %q, %v", got, err)
	}
	srv.Log.Await(t, 1, "disconnected a client: message carries file descriptors")
	wantBack(t, dial(t, srv.Addr), sock.NewReceiver(100), message)
}

func TestSeqpacketDrainLetsRunningEchoesEnd(t *testing.T) {
	t.Parallel()
	srv := serveSocket(t, listenOn(t, addr.Seqpacket), config{DrainTimeout: patience}, zerolog.DebugLevel)
	conn, r := dial(t, srv.Addr), sock.NewReceiver(100)
	wantBack(t, conn, r, "before")
	srv.Stop()
	srv.Log.Await(t, 1, "draining")
	wantBack(t, conn, r, "after")
	check(t, conn.CloseWrite())
	if got, err := conn.Receive(r); err != io.EOF {
		t.Errorf("at the end came %q, %v", got, err)
	}
	srv.Ended(t)
	gone(t, srv.Addr.Path)
}

func TestSeqpacketDrainServesConnectionsThatWereNotYetAccepted(t *testing.T) {
	t.Parallel()
	socket := listenOn(t, addr.Seqpacket)
	var conns []*sock.Conn
	for i := range 100 {
		conn := dial(t, socket.Addr)
		check(t, conn.Send(fmt.Appendf(nil, "client %d", i)))
		check(t, conn.Send(nil))
		check(t, conn.CloseWrite())
		conns = append(conns, conn)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	srv := config{DrainTimeout: patience, Log: zerolog.Nop()}
	check(t, srv.Serve(ctx, socket))
	for i, conn := range conns {
		wantRecords(t, conn, []string{fmt.Sprintf("client %d", i), ""})
	}
}
