//go:build unix

package uds

import (
	"errors"
	"os"
)

// withDescriptors calls f with the descriptors of files, which stay open
// meanwhile.
func withDescriptors(files []*os.File, fds []int, f func(fds []int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	ctrlErr := raw.Control(func(fd uintptr) { err = withDescriptors(files[1:], append(fds, int(fd)), f) })
	return errors.Join(ctrlErr, err)
}
