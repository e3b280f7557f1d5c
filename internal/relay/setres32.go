//go:build 386 || arm

package relay

import "golang.org/x/sys/unix"

// The calls without 32 have users of 16 bits.
const setresuid, setresgid = unix.SYS_SETRESUID32, unix.SYS_SETRESGID32
