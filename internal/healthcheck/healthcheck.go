// Package healthcheck asks a server for what it is there for, as its own user.
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
	"github.com/udsecho/udsecho/uds"
)

// dial connects to the server whose health is to be checked. The client's
// name marks it for the server, which does not mention it at info level, see
// [Server]. A server of another user is an impostor; root may check anybody's.
func dial(ctx context.Context, a transport.Addr) (*transport.Conn, error) {
	conn, err := transport.DialConfig{Bind: echo.HealthName + uds.AutoName("")}.Dial(ctx, a)
	if err != nil || !a.Type.Unix() || !a.Type.Connects() || os.Geteuid() == 0 {
		return conn, err
	}
	cred, err := uds.PeerCred(conn)
	switch {
	case err != nil:
	case uds.Unmapped(cred.Uid):
		err = fmt.Errorf("health check of %s: user %d serves there, which may be any that this user namespace does not map: map the server's user into it", a, cred.Uid)
	case !uds.IsOwnUser(cred.Uid):
		err = fmt.Errorf("health check of %s: user %d serves there, and this process is user %d: find out who", a, cred.Uid, os.Geteuid())
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Echo does one echo round trip with the server at a and tells why it
// failed.
func Echo(ctx context.Context, a transport.Addr) error {
	conn, err := dial(ctx, a)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	sent := []byte("are you well?")
	var back bytes.Buffer
	client := echoclient.Client{Log: zerolog.Nop()}
	if err := client.Message(ctx, conn, sent, &back); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return fmt.Errorf("health check of %s: connected, but no echo in time: the server is paused or overloaded", a)
		}
		return fmt.Errorf("health check of %s: %w", a, err)
	}
	if !bytes.Equal(back.Bytes(), sent) {
		return fmt.Errorf("health check of %s: sent %s, got back %s: that is no echo server", a, transcript.Quote(sent), transcript.Quote(back.Bytes()))
	}
	return nil
}

// Files hands some bytes of memory to the server at a and tells why it
// did not read them.
func Files(ctx context.Context, a transport.Addr) error {
	content := []byte("are you well?")
	f, err := fileclient.Seal("the health check", bytes.NewReader(content))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	conn, err := dial(ctx, a)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := fileclient.Client{Log: zerolog.Nop()}
	got, err := client.Sum(ctx, conn, f)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("health check of %s: connected, but no answer in time: the server is paused or overloaded", a)
	case err != nil:
		return fmt.Errorf("health check of %s: %w", a, err)
	case got != files.Sum{Size: int64(len(content)), SHA256: sha256.Sum256(content)}:
		return fmt.Errorf("health check of %s: the answer %s is wrong", a, got)
	}
	return nil
}
