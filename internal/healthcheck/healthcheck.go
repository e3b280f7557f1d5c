// Package healthcheck asks a server to do its work, as the server's own user.
package healthcheck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/rs/zerolog"

	"github.com/udsecho/udsecho/internal/echo"
	"github.com/udsecho/udsecho/internal/echoclient"
	"github.com/udsecho/udsecho/internal/fileclient"
	"github.com/udsecho/udsecho/internal/files"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds/sock"
)

// dial connects to the server whose health is checked. The client's name marks
// it as a health check, which the server does not log at info level, see
// [Server]. A server of another user may be an impostor, so dial rejects it;
// root may check the server of any user.
func dial(ctx context.Context, a transport.Addr) (*sock.Conn, error) {
	conn, err := transport.Dial(ctx, a, sock.DialConfig{Bind: echo.HealthName + sock.AutoName("")})
	if err != nil || !a.Type.Unix() || !a.Type.Connects() || os.Geteuid() == 0 {
		return conn, err
	}
	cred, err := conn.PeerCred()
	switch {
	case err != nil:
	case sock.Unmapped(cred.Uid):
		err = fmt.Errorf("health check of %s: user %d serves there, which may be any that this user namespace does not map; map the server's user into it", a, cred.Uid)
	case !sock.IsOwnUser(cred.Uid):
		err = fmt.Errorf("health check of %s: user %d serves there, and this process is user %d; find out which server this is", a, cred.Uid, os.Geteuid())
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Echo does one echo round trip with the server at a, and returns why it failed.
func Echo(ctx context.Context, a transport.Addr) error {
	return ask(ctx, a, "echo", func(conn *sock.Conn) error {
		var back bytes.Buffer
		client := echoclient.Client{Log: zerolog.Nop()}
		if err := client.Message(ctx, conn, question, &back); err != nil {
			return err
		}
		if !bytes.Equal(back.Bytes(), question) {
			return fmt.Errorf("sent %s, received %s; the server is not an echo server", transcript.Quote(question), transcript.Quote(back.Bytes()))
		}
		return nil
	})
}

// Files sends a file in memory to the server at a, and returns why the server
// did not read it.
func Files(ctx context.Context, a transport.Addr) error {
	f, err := fileclient.Seal("the health check", bytes.NewReader(question))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return ask(ctx, a, "answer", func(conn *sock.Conn) error {
		client := fileclient.Client{Log: zerolog.Nop()}
		got, err := client.Sum(ctx, conn, f)
		if err == nil && got != (files.Sum{Size: int64(len(question)), SHA256: sha256.Sum256(question)}) {
			err = fmt.Errorf("the answer %s is wrong", got)
		}
		return err
	})
}

var question = []byte("are you well?")

func ask(ctx context.Context, a transport.Addr, answer string, do func(*sock.Conn) error) error {
	conn, err := dial(ctx, a)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	err = do(conn)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil:
		return fmt.Errorf("health check of %s: connected, but no %s in time: the server is paused or overloaded", a, answer)
	}
	return fmt.Errorf("health check of %s: %w", a, err)
}
