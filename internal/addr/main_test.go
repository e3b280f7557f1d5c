package addr_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/testkit"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var check = testkit.Check

func listen(t testing.TB, c sock.ListenConfig, a addr.Addr) *addr.Socket {
	t.Helper()
	s, err := addr.Listen(c, a)
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// wantError wants an error that is want and contains all words.
func wantError(t testing.TB, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, not %v", err, want)
	}
	testkit.WantWords(t, err.Error(), words...)
}
