package sock

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// MaxPath is the largest number of path bytes that fit sun_path together with
// the closing NUL, unix(7), "Address format".
const MaxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// CheckPath returns an [ErrAddress] for a path that can never be bound or
// connected to, whatever the file system holds. Without this check the kernel
// would silently read some as another path: it chooses an abstract name for an
// empty one, and cuts a path at its first NUL byte.
func CheckPath(path string) error {
	switch {
	case path == "" || path == "@":
		return fmt.Errorf("%w %q: the path is empty", ErrAddress, path)
	case strings.IndexByte(path, 0) >= 0:
		return fmt.Errorf("%w %q: the path holds a NUL byte; leave it out", ErrAddress, path)
	case strings.HasSuffix(path, "/"):
		return fmt.Errorf("%w %q: the path is a directory; name the socket file in it", ErrAddress, path)
	case len(path) > MaxPath:
		return fmt.Errorf("%w %q: path is %d bytes, sun_path holds %d; choose a shorter path, or change to its directory and use a relative one",
			ErrAddress, path, len(path), MaxPath)
	}
	return nil
}

// IsAbstract reports whether a path is a name in the network namespace, @NAME,
// and not a file, unix(7), "abstract".
func IsAbstract(path string) bool { return strings.HasPrefix(path, "@") }

// AutoName returns a name for the client's own socket that no other client
// has: a path in directory dir, or an abstract name if dir is "@". The process
// id alone is not unique, because every client is process 1 of its container;
// so the name also contains the host name and a random part.
func AutoName(dir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if len(host) > 12 { // enough for a container id; sun_path is short
		host = host[:12]
	}
	name := fmt.Sprintf("client.%s.%d.%s", host, os.Getpid(), strings.ToLower(rand.Text()[:8]))
	if dir == "@" {
		return dir + name
	}
	return filepath.Join(dir, name)
}
