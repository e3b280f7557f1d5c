package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds/sock"
)

// Check checks the health of the server at a: it sends a file in memory, and
// returns why the server did not read it.
func Check(ctx context.Context, a addr.Addr) error {
	question := []byte("are you well?")
	f, err := Seal("the health check", bytes.NewReader(question))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return server.CheckHealth(ctx, a, "answer", func(conn *sock.Conn) error {
		client := Client{Log: zerolog.Nop()}
		got, err := client.Sum(ctx, conn, f)
		if err == nil && got != (Sum{Size: int64(len(question)), SHA256: sha256.Sum256(question)}) {
			err = fmt.Errorf("the answer %s is wrong", got)
		}
		return err
	})
}
