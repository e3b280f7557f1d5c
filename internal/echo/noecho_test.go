package echo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/uds/sock"
)

// unserved connects to a socket that no process reads from.
func unserved(t *testing.T, typ addr.Type) *sock.Conn {
	return dial(t, listenOn(t, typ).Addr)
}

func TestSilenceEndsAClientThatExpectsNoEcho(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		for name, send := range map[string]func(*echo.Client, *sock.Conn) error{
			"message": func(c *echo.Client, conn *sock.Conn) error {
				return c.Message(t.Context(), conn, []byte("hello"), io.Discard)
			},
			"empty message": func(c *echo.Client, conn *sock.Conn) error {
				return c.Message(t.Context(), conn, nil, io.Discard)
			},
			"copy": func(c *echo.Client, conn *sock.Conn) error {
				return c.Copy(t.Context(), conn, strings.NewReader("hello"), io.Discard)
			},
		} {
			t.Run(string(typ)+" "+name, func(t *testing.T) {
				t.Parallel()
				c := &echo.Client{NoEcho: true, Timeout: unhurried / 10, Log: zerolog.Nop()}
				check(t, send(c, unserved(t, typ)))
			})
		}
	}
}

func TestNoEchoToAServerThatDoesNotReadIsAnError(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			c := &echo.Client{NoEcho: true, Timeout: unhurried / 10, Chunk: 1000, Log: zerolog.Nop()}
			err := c.Copy(t.Context(), unserved(t, typ), random(1, 8<<20), io.Discard)
			wantWords(t, err, "the server has not read for "+(unhurried/10).String(), "paused or overloaded")
		})
	}
}

func TestNoEchoReceivesMuchWhileItSends(t *testing.T) {
	t.Parallel()
	for _, typ := range []addr.Type{addr.Stream, addr.Seqpacket} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			s := serveSocket(t, listenOn(t, typ), config{Chunk: 4096}, zerolog.Disabled)
			var want, got bytes.Buffer
			_, err := io.Copy(&want, random(2, 4<<20))
			check(t, err)
			c := &echo.Client{NoEcho: true, Chunk: 4096, Log: zerolog.Nop()}
			check(t, c.Copy(t.Context(), dial(t, s.Addr), random(2, 4<<20), &got))
			if !bytes.Equal(want.Bytes(), got.Bytes()) {
				t.Errorf("received %d of %d bytes, or other bytes", got.Len(), want.Len())
			}
		})
	}
}

// With an idle input, the client does not wait for the server.
func TestClientWithIdleInputEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, typ := range unixTypes {
		for _, noEcho := range []bool{false, true} {
			conn := unserved(t, typ)
			ctx, cancel := context.WithCancelCause(t.Context())
			asked, over := make(chan struct{}), make(chan struct{})
			reason, result := errors.New("enough"), make(chan error, 1)
			go func() {
				c := &echo.Client{NoEcho: noEcho, Lines: true, Log: zerolog.Nop()}
				result <- c.Copy(ctx, conn, &idle{strings.NewReader(""), asked, over}, io.Discard)
			}()
			<-asked
			cancel(reason)
			select {
			case err := <-result:
				if !errors.Is(err, reason) {
					t.Errorf("%s: error is %v", typ, err)
				}
			case <-time.After(patience):
				t.Errorf("%s: it does not end", typ)
			}
			close(over)
		}
	}
}
