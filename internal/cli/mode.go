package cli

import (
	"fmt"
	"io/fs"
	"strconv"
)

// ParseMode reads the permission bits of a socket file, in octal: 0660 or 660.
func ParseMode(s string) (fs.FileMode, error) {
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m == 0 || m > 0o777 {
		return 0, fmt.Errorf("mode %q is not an octal number from 1 to 777; write 0660 to let a group connect, 0666 for all users", s)
	}
	return fs.FileMode(m), nil
}
