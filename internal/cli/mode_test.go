package cli_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/testkit"
)

func TestParseMode(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint32{"0660": 0o660, "660": 0o660, "0777": 0o777, "1": 1} {
		got, err := cli.ParseMode(in)
		if err != nil || uint32(got) != want {
			t.Errorf("%q gives %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "000", "1000", "1777", "888", "rw-rw----", "-660", "+660", "0x1ff", "0o600", "660 ", "99999999999"} {
		got, err := cli.ParseMode(in)
		if err == nil {
			t.Errorf("%q gives %v", in, got)
			continue
		}
		testkit.WantWords(t, err.Error(), "octal", "0660")
	}
}

func FuzzParseMode(f *testing.F) {
	for _, s := range []string{"0660", "777", "0", "1000", "0o600", "rw-rw----", "+7", "0_7", "٧"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := cli.ParseMode(s)
		if err != nil {
			if m != 0 {
				t.Fatalf("%q gives %v and %v", s, m, err)
			}
			return
		}
		if m == 0 || m&^0o777 != 0 || strings.TrimLeft(s, "0") != strconv.FormatUint(uint64(m), 8) {
			t.Fatalf("%q gives %o", s, m)
		}
	})
}
