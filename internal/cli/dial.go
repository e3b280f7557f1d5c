package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// Dial connects. It tries again for as long as patience allows if no server is
// there yet: the path is missing or stale, or the backlog is full.
func Dial(ctx context.Context, a addr.Addr, config sock.DialConfig, patience time.Duration) (*sock.Conn, error) {
	if patience == 0 {
		conn, err := addr.Dial(ctx, a, config)
		switch {
		case err != nil && ctx.Err() != nil:
			err = context.Cause(ctx)
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN):
			err = fmt.Errorf("%w (--retry waits for it)", err)
		}
		return conn, err
	}
	conn, err := backoff.Retry(ctx, func() (*sock.Conn, error) {
		conn, err := addr.Dial(ctx, a, config)
		if err != nil && !sock.NotThereYet(err) {
			err = backoff.Permanent(err)
		}
		return conn, err
	}, backoff.WithBackOff(NewBackOff()), backoff.WithMaxElapsedTime(patience))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && sock.NotThereYet(err):
		return nil, fmt.Errorf("%w (tried for %v)", err, patience)
	}
	return conn, err
}

// NewBackOff returns the times between two attempts to connect, with jitter: many
// clients must not come back at the same moment.
func NewBackOff() *backoff.ExponentialBackOff {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 10*time.Millisecond, time.Second
	return wait
}

// OwnName returns the name of the client's own socket by --bind, "" for none.
// For a datagram socket it is absolute if that fits sun_path, as the server looks
// it up in its own directory.
func OwnName(bind string, a addr.Addr) string {
	datagram := a.Type == addr.Datagram
	switch {
	case bind == "none" || bind == "" && !datagram || !a.Type.Unix():
		return ""
	case bind == "auto" || bind == "":
		bind = nameBeside(a.Path)
	case strings.HasSuffix(bind, "/"):
		bind = nameBeside(bind)
	}
	if abs, err := filepath.Abs(bind); datagram && bind[0] != '@' && err == nil && len(abs) <= sock.MaxPath {
		return abs
	}
	return bind
}

// NextName returns the client's own name for another connection after name.
// Over datagrams it is a new name: what a slow server still sends to the old
// name is not an answer to a message sent under the new one.
func NextName(name string, t addr.Type) string {
	if name == "" || t != addr.Datagram {
		return name
	}
	return nameBeside(name)
}

// nameBeside returns a name in the directory of another; if that is abstract, an
// abstract one.
func nameBeside(name string) string {
	if strings.HasPrefix(name, "@") {
		return sock.AutoName("@")
	}
	return sock.AutoName(filepath.Dir(name))
}

// RequireFlags name the user and group that must run the server.
type RequireFlags struct {
	RequireUID *uint32 `name:"require-uid" placeholder:"UID" help:"Send nothing to a server of another user; stream and seqpacket only."`
	RequireGID *uint32 `name:"require-gid" placeholder:"GID" help:"Send nothing to a server of another effective group; stream and seqpacket only."`
}

// ValidateFor rejects the flags for a type whose servers have no user.
func (f RequireFlags) ValidateFor(t addr.Type) error {
	if f != (RequireFlags{}) && (!t.Unix() || !t.Connects()) {
		return fmt.Errorf("--require-uid, --require-gid: the kernel does not report the server's user for a %s socket; use stream or seqpacket", t)
	}
	return nil
}

// Dial is [Dial], but it rejects a server that is not the required one before a
// byte is sent to it.
func (f RequireFlags) Dial(ctx context.Context, a addr.Addr, config sock.DialConfig, patience time.Duration) (*sock.Conn, error) {
	conn, err := Dial(ctx, a, config, patience)
	if err != nil || f == (RequireFlags{}) {
		return conn, err
	}
	cred, err := conn.PeerCred()
	if err == nil {
		err = f.CheckCred(*cred)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	return conn, nil
}

// CheckCred rejects a server that is not the required one.
func (f RequireFlags) CheckCred(cred unix.Ucred) error {
	switch {
	case f.RequireUID != nil && cred.Uid != *f.RequireUID:
		return fmt.Errorf("the server runs as user %d, not %d as --require-uid requires; nothing was sent; find out which server this is", cred.Uid, *f.RequireUID)
	case f.RequireGID != nil && cred.Gid != *f.RequireGID:
		return fmt.Errorf("the server runs as group %d, not %d as --require-gid requires; nothing was sent; find out which server this is", cred.Gid, *f.RequireGID)
	}
	return nil
}

// IsTerminal reports whether one of the standard files is a terminal.
func IsTerminal(file any) bool {
	f, ok := file.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
