//go:build darwin || dragonfly || freebsd || netbsd || openbsd || (linux && uds_portable)

package uds

import (
	"os"
	"syscall"
)

const canLock = true

func flock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
