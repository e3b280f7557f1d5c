//go:build !linux || uds_portable

package uds_test

import (
	"errors"
	"testing"

	"github.com/udsecho/udsecho/uds"
)

func TestWhatNeedsLinux(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, c := range []uds.ListenConfig{{Takeover: true}, {Renew: true}} {
		_, err := c.Listen(t.Context(), "unix", d+"/s")
		wantError(t, err, errors.ErrUnsupported)
	}
	p, err := uds.ListenPacket("unixgram", d+"/s")
	check(t, err)
	_, _, _, err = p.(*uds.PacketConn).ReadFromCred(nil)
	wantError(t, err, errors.ErrUnsupported)
	check(t, p.Close())
	wantFiles(t, d)
}
