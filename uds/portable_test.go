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
		if _, err := c.Listen(t.Context(), "unix", d+"/s"); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v", err)
		}
	}
	p, err := uds.ListenPacket("unixgram", d+"/s")
	check(t, err)
	if _, _, _, err := p.(*uds.PacketConn).ReadFromCred(nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	check(t, p.Close())
	wantEmpty(t, d)
}
