// Package sock has the descriptors of Unix sockets, for event loops: addresses,
// bound sockets with their files and locks, handovers, messages, peer
// credentials. Package uds, which stands on it, is what programs want. Package
// sock is public because the server of this project is another module; it may
// change with each version. Linux only.
//
// It logs nothing and sets no policy. Its errors say what is wrong and what to
// do. The numbers follow unix(7), socket(7) and listen(2).
package sock

import (
	"errors"
	"syscall"
)

// Errors that a caller may want to distinguish with errors.Is. Each comes
// wrapped in an error that names the address.
var (
	// ErrAddress means that the address cannot be valid: a wrong form, no
	// path, a NUL byte, or a path longer than [MaxPath].
	ErrAddress = errors.New("bad address")
	// ErrInUse means that a running server holds the path. It is also an
	// EADDRINUSE to errors.Is.
	ErrInUse error = inUseError{}
	// ErrDescriptors means that a message came with file descriptors that were
	// not requested, or with too many. They are all closed.
	ErrDescriptors = errors.New("message carries file descriptors")
	// ErrTruncated means that a message is larger than the receive buffer. The
	// received bytes are only the start of the message; do not treat them as
	// the whole.
	ErrTruncated = errors.New("message is larger than the receive buffer")
	// ErrNotSocket means that the file at the path is not a socket.
	ErrNotSocket = errors.New("not a socket")
	// ErrOpenFiles means that this process could not receive a message's
	// descriptors, because it has reached its limit of open files. The
	// descriptors that did arrive are closed.
	ErrOpenFiles = errors.New("no room for another open file")
)

type inUseError struct{}

func (inUseError) Error() string        { return "in use" }
func (inUseError) Is(target error) bool { return target == syscall.EADDRINUSE }
