package echo

import (
	"bytes"
	"context"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// Check checks the health of the server at a by one round trip, and returns why
// it failed.
func Check(ctx context.Context, a addr.Addr) error {
	question := []byte("are you well?")
	return server.CheckHealth(ctx, a, "echo", func(conn *sock.Conn) error {
		var back bytes.Buffer
		client := Client{Log: zerolog.Nop()}
		if err := client.Message(ctx, conn, question, &back); err != nil {
			return err
		}
		if !bytes.Equal(back.Bytes(), question) {
			return fmt.Errorf("sent %s, received %s; the server is not an echo server", logtext.Quote(question), logtext.Quote(back.Bytes()))
		}
		return nil
	})
}
