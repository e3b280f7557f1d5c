package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// HealthChecks is the number of health check connections that are served in
// addition to the limits, so that a full server is not killed as unhealthy. It
// allows a few checks at once, each with a connection that the check has just
// closed and the server has not closed yet.
const HealthChecks = 8

// healthName is the prefix of the name of a client that checks the server's
// health.
const healthName = "@udsecho.healthcheck."

// isHealthCheck reports whether a client checks the server's health: its name
// says so, and it runs as the server's own user, which is what the server
// trusts. It is not logged at info level, and served in addition to the limits.
func isHealthCheck(name string, cred *unix.Ucred) bool {
	return cred != nil && strings.HasPrefix(name, healthName) && sock.IsOwnUser(cred.Uid)
}

// SplitHealthChecks returns a handler that gives health checks to checks, and all
// other clients to h.
func SplitHealthChecks(h, checks Handler) Handler { return &split{h, checks} }

type split struct {
	Handler
	checks Handler
}

func (h *split) Serve(c Conn) {
	if c.HealthCheck() {
		h.checks.Serve(c)
	} else {
		h.Handler.Serve(c)
	}
}

func (h *split) Receive(m Message) (more bool) {
	if m.HealthCheck() {
		return h.checks.Receive(m)
	}
	return h.Handler.Receive(m)
}

func (h *split) Sweep(now time.Duration, stopped bool) {
	h.checks.Sweep(now, stopped)
	h.Handler.Sweep(now, stopped)
}

func (h *split) Close() {
	h.checks.Close()
	h.Handler.Close()
}

// CheckHealth connects to the server at a as a health check, and asks it to do
// its work. answer names what ask waits for. A server of another user may be an
// impostor, so it is rejected; root may check the server of any user.
func CheckHealth(ctx context.Context, a addr.Addr, answer string, ask func(*sock.Conn) error) error {
	conn, err := addr.Dial(ctx, a, sock.DialConfig{Bind: healthName + sock.AutoName("")})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if a.Type.Unix() && a.Type.Connects() && os.Geteuid() != 0 {
		err = checkOwn(conn)
	}
	if err == nil {
		err = ask(conn)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil:
		return fmt.Errorf("health check of %s: connected, but no %s in time: the server is paused or overloaded", a, answer)
	}
	return fmt.Errorf("health check of %s: %w", a, err)
}

func checkOwn(conn *sock.Conn) error {
	cred, err := conn.PeerCred()
	switch {
	case err != nil:
		return err
	case sock.Unmapped(cred.Uid):
		return fmt.Errorf("user %d serves there, which may be any that this user namespace does not map; map the server's user into it", cred.Uid)
	case !sock.IsOwnUser(cred.Uid):
		return fmt.Errorf("user %d serves there, and this process is user %d; find out which server this is", cred.Uid, os.Geteuid())
	}
	return nil
}

// Healthcheck is the part of the command that programs share.
type Healthcheck struct {
	ListenFlag
	Timeout time.Duration `default:"2s" placeholder:"DURATION" help:"The longest time for all answers together."`
}

// Validate rejects values that make no sense.
func (c *Healthcheck) Validate() error {
	if c.Timeout <= 0 {
		return fmt.Errorf("--timeout %v: choose more than 0s", c.Timeout)
	}
	return c.ListenFlag.Validate()
}

// Check runs check on every address. It needs no shell in the image. It fails if
// the server is stopped or hangs; connecting alone would succeed.
func (c *Healthcheck) Check(check func(context.Context, addr.Addr) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	for _, a := range c.Listen {
		if err := check(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
