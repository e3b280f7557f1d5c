//go:build !linux || uds_portable

package uds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/udsecho/udsecho/uds/sock"
)

func (c ListenConfig) listen(ctx context.Context, network, path string) (*Listener, error) {
	if c.Takeover || c.Renew {
		return nil, fmt.Errorf("Takeover and Renew need Linux: %w", errors.ErrUnsupported)
	}
	p, err := claim(path)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{Control: c.Control}).Listen(ctx, network, path)
	if err != nil {
		return nil, errors.Join(explain(path, err), p.release())
	}
	inner := l.(*net.UnixListener)
	inner.SetUnlinkOnClose(false) // p does that
	if err := p.made(c.Mode); err != nil {
		return nil, errors.Join(err, inner.Close(), p.release())
	}
	return newListener(network, path, inner, p.release), nil
}

func (c ListenConfig) listenPacket(ctx context.Context, path string) (*PacketConn, error) {
	p, err := claim(path)
	if err != nil {
		return nil, err
	}
	inner, err := (&net.ListenConfig{Control: c.Control}).ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, errors.Join(explain(path, err), p.release())
	}
	if err := p.made(c.Mode); err != nil {
		return nil, errors.Join(err, inner.Close(), p.release())
	}
	return &PacketConn{UnixConn: inner.(*net.UnixConn), files: p.release}, nil
}

func (*PacketConn) readFromCred([]byte) (int, net.Addr, Cred, error) {
	return 0, nil, Cred{}, fmt.Errorf("credentials of a datagram's sender need Linux: %w", errors.ErrUnsupported)
}

// A place is the path of a socket, and the lock beside it. An abstract name
// has neither file.
type place struct {
	path string // absolute, because the process may change its directory; "" for an abstract name
	lock *os.File
	file fs.FileInfo // the socket file, once it is made
}

// claim locks a path and removes a stale socket.
func claim(path string) (*place, error) {
	if sock.IsAbstract(path) {
		return &place{}, nil
	}
	p := &place{path: path}
	if abs, err := filepath.Abs(path); err == nil {
		p.path = abs
	}
	err := p.takeLock()
	if err == nil {
		err = removeStale(path)
	}
	if err != nil {
		return nil, errors.Join(err, p.release())
	}
	return p, nil
}

func (p *place) takeLock() error {
	if !canLock {
		return nil
	}
	dir, base := filepath.Split(p.path)
	name := dir + "." + base + ".lock"
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			return explain(name, err)
		}
		if err := flock(f); err != nil {
			_ = f.Close()
			return fmt.Errorf("%w: another server holds %s; stop it first or choose another path", ErrInUse, name)
		}
		if isAt(f, name) { // otherwise its last holder has just removed it
			p.lock = f
			return nil
		}
		_ = f.Close()
	}
}

func isAt(f *os.File, name string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(name)
	return err == nil && os.SameFile(held, now)
}

// made remembers the socket file that package net has just made.
func (p *place) made(mode fs.FileMode) (err error) {
	if p.path == "" {
		return nil
	}
	if p.file, err = os.Lstat(p.path); err == nil && mode != 0 {
		err = os.Chmod(p.path, mode.Perm())
	}
	return err
}

// release removes the socket file, if it is still the same, and then the lock.
func (p *place) release() error {
	if now, err := os.Lstat(p.path); err == nil && p.file != nil && os.SameFile(p.file, now) {
		_ = os.Remove(p.path)
	}
	if p.lock == nil {
		return nil
	}
	if isAt(p.lock, p.lock.Name()) {
		_ = os.Remove(p.lock.Name())
	}
	return p.lock.Close()
}

// removeStale removes a socket that no process serves, and nothing else. The
// caller holds the lock of the path.
func removeStale(path string) error {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return explain(path, err)
	case !isSocket(info.Mode()):
		return fmt.Errorf("%w: %s is %v; it is left alone; remove it yourself or choose another path", ErrNotSocket, path, info.Mode().Type())
	}
	stale := false
	for _, network := range []string{"unix", "unixgram", "unixpacket"} {
		c, err := net.Dial(network, path)
		switch {
		case err == nil:
			_ = c.Close()
			return fmt.Errorf("%w: a server answers on %s; stop it first or choose another path", ErrInUse, path)
		case errors.Is(err, errRefused):
			stale = true
		case errors.Is(err, syscall.EPROTOTYPE): // a process has a socket of another type
			return fmt.Errorf("%w: a process has %s open; stop it first or choose another path", ErrInUse, path)
		case errors.Is(err, fs.ErrPermission):
			return fmt.Errorf("cannot tell whether %s is served, so it is left alone: %w", path, explain(path, err))
		} // otherwise the system does not have this type
	}
	if !stale {
		return fmt.Errorf("cannot tell whether %s is served, so it is left alone; if no server runs, remove it", path)
	}
	return os.Remove(path)
}

func (d Dialer) dial(ctx context.Context, network, path string) (net.Conn, error) {
	inner := net.Dialer{Control: d.Control}
	if d.Name == "" {
		c, err := inner.DialContext(ctx, network, path)
		return c, explain(path, err)
	}
	p := &place{}
	if _, err := where(d.Name); err != nil {
		return nil, fmt.Errorf("the client's own name: %w", err)
	}
	if !sock.IsAbstract(d.Name) {
		if _, err := os.Lstat(d.Name); err == nil {
			return nil, fmt.Errorf("%w: something is at %s already, and is left alone; choose another name", ErrInUse, d.Name)
		}
		if abs, err := filepath.Abs(d.Name); err == nil {
			p.path = abs
		}
	}
	inner.LocalAddr = &net.UnixAddr{Name: d.Name, Net: network}
	c, err := inner.DialContext(ctx, network, path)
	if err != nil {
		if p.path != "" {
			_ = os.Remove(p.path) // it was not there before
		}
		return nil, explain(path, err)
	}
	// The server may run as another user and must be able to write to it.
	if err := p.made(0o666); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	remove := sync.OnceFunc(func() { _ = p.release() })
	return &Conn{c.(*net.UnixConn), func() error { remove(); return c.Close() }}, nil
}

// explain adds to an error of the kernel what it means for this path, and what
// to do.
func explain(path string, err error) error {
	cure := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		cure = "nothing is there; start the server first, or keep trying; its directory must exist"
	case errors.Is(err, errRefused):
		cure = "no process serves it, the file is stale; start the server again, it replaces the file"
	case errors.Is(err, syscall.EPROTOTYPE):
		cure = "the server's socket is of another type; use its network"
	case errors.Is(err, fs.ErrPermission):
		cure = "its mode, or a directory's, denies this process permission"
	}
	var op *net.OpError
	if errors.As(err, &op) && cure != "" {
		err = op.Err
	}
	if cure == "" {
		return err
	}
	return fmt.Errorf("%w: %s: %s", err, path, cure)
}

func notThereYet(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errRefused) || errors.Is(err, syscall.EAGAIN)
}
