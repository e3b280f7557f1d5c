package echo_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/echo/echotest"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestTranscripts(t *testing.T) {
	t.Parallel()
	whole := []string{"received 'This is the message.  It will be repeated.'"}
	for _, tt := range []struct {
		typ      addr.Type
		received []string
		waiting  string
		end      []string // of the connection
	}{
		{addr.Stream, []string{"received 'This is the mess'", "received 'age.  It will be'", "received ' repeated.'"}, "waiting for a connection", []string{"received ''", "no data from"}},
		{addr.Seqpacket, whole, "waiting for a connection", []string{"no data from"}},
		{addr.Datagram, whole, "waiting for a message", nil},
	} {
		t.Run(string(tt.typ), func(t *testing.T) {
			t.Parallel()
			srv := serveSocket(t, listenOn(t, tt.typ), config{}, zerolog.InfoLevel)
			srv.Log.Await(t, 1, tt.waiting)
			journal, out := newJournal(), &bytes.Buffer{}
			client := echo.Client{Chunk: 16, Log: journal.Logger(zerolog.InfoLevel)}
			conn := dial(t, srv.Addr)
			name := conn.LocalAddr().String()
			check(t, client.Message(t.Context(), conn, []byte(message), out))
			check(t, conn.Close())

			want := []string{"starting up on " + srv.Addr.Path, tt.waiting}
			if tt.typ.Connects() {
				srv.Log.Await(t, 2, tt.waiting)
				want = append(want, "connection from")
			}
			for _, received := range tt.received {
				want = append(want, received, "sending data back to the client")
			}
			if want = append(want, tt.end...); tt.typ.Connects() {
				want = append(want, tt.waiting)
			} else if e := srv.Log.All()[2]; e.Peer != name || e.Bytes == nil || *e.Bytes != 42 {
				t.Errorf("event is %+v, the client %s", e, name)
			}
			if diff := cmp.Diff(want, srv.Log.Messages()); diff != "" {
				t.Errorf("server (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(append([]string{"sending 'This is the message.  It will be repeated.'"}, tt.received...), journal.Messages()); diff != "" {
				t.Errorf("client (-want +got):\n%s", diff)
			}
			if out.String() != message {
				t.Errorf("output is %q", out)
			}
		})
	}
}

func TestEventsNameTheirClientInFields(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.InfoLevel)
	name := sock.AutoName("@")
	for served := range 2 {
		conn, err := addr.Dial(t.Context(), srv.Addr, sock.DialConfig{Bind: name})
		check(t, err)
		wantEcho(t, conn, "hello")
		check(t, conn.Close())
		srv.Log.Await(t, served+2, "waiting for a connection")
	}
	five, zero := 5, 0
	var want []echotest.Event
	for id := range uint64(2) {
		of := echotest.Event{Level: "info", Peer: name, Conn: id + 1}
		for _, e := range []echotest.Event{
			{Message: "connection from"},
			{Message: "received 'hello'", Bytes: &five},
			{Message: "sending data back to the client", Bytes: &five},
			{Message: "received ''", Bytes: &zero},
			{Message: "no data from"},
			{Message: "waiting for a connection"},
		} {
			of.Message, of.Bytes = e.Message, e.Bytes
			want = append(want, of)
		}
	}
	if diff := cmp.Diff(want, srv.Log.All()[2:]); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestManyClientsAtOnceGetTheirOwnBytes(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.Disabled)
	var wg sync.WaitGroup
	for i := range 100 {
		conn := dial(t, srv.Addr)
		wg.Go(func() {
			sent, err := io.ReadAll(random(byte(i), 20_000))
			if err != nil {
				t.Error(err)
				return
			}
			out := &bytes.Buffer{}
			client := echo.Client{Chunk: 1000, Log: zerolog.Nop()}
			if err := client.Copy(t.Context(), conn, bytes.NewReader(sent), out); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(out.Bytes(), sent) {
				t.Errorf("client %d got other bytes than it sent", i)
			}
		})
	}
	wg.Wait()
}

func TestClientThatNeverReadsStopsNoOtherClient(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{Chunk: 4096}, zerolog.Disabled)
	sent, err := io.ReadAll(random(1, 8<<20))
	check(t, err)

	// It writes until the server accepts nothing more.
	lazy := dial(t, srv.Addr)
	check(t, lazy.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	n, err := lazy.Write(sent)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes were taken from a client that does not read: %v", n, err)
	}

	for range 10 {
		wantEcho(t, dial(t, srv.Addr), message)
	}

	check(t, lazy.CloseWrite())
	got, err := io.ReadAll(lazy)
	check(t, err)
	if !bytes.Equal(got, sent[:n]) {
		t.Errorf("%d bytes were taken, %d came back, equal: %t", n, len(got), bytes.HasPrefix(sent, got))
	}
}

func TestF24HalfCloseLosesNothing(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{Chunk: 64 << 10}, zerolog.Disabled)
	const n, size = 3, 16 << 20
	for round := range byte(n) {
		sent, err := io.ReadAll(random(round, size))
		check(t, err)
		conn := dial(t, srv.Addr)
		var writer sync.WaitGroup
		writer.Go(func() {
			if _, err := conn.Write(sent); err != nil {
				t.Error(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		got, err := io.ReadAll(conn)
		writer.Wait()
		check(t, err)
		if !bytes.Equal(got, sent) {
			t.Fatalf("received %d of %d bytes", len(got), len(sent))
		}
	}
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F24", Done: "16 MiB sent, then the writing side closed", Count: n,
		Outcome: fmt.Sprintf("each time %d MiB back, byte for byte, then end of file", size>>20),
	})
}

func TestClientThatDisconnectsDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	srv := serve(t, config{}, zerolog.InfoLevel)
	for range 5 {
		conn := dial(t, srv.Addr)
		_, err := conn.Write(make([]byte, 1000))
		check(t, err)
		// Bytes are unread, so both the server's sends and its receives fail.
		check(t, conn.Close())
	}
	srv.Log.Await(t, 6, "waiting for a connection")
	wantEcho(t, dial(t, srv.Addr), message)
}
