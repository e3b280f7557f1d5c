package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/addr"
)

// User input is read byte for byte or rejected, and every list is read exactly
// as it was written.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"", "s", "stream:a,b", `a\,b,datagram:c`, `a\`, `a\,`, `\\,`, ",", "a,,b", "--listen", "\xff\n", "@x,tcp:[::1]:7000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "\x00") {
			return // no argument can contain one
		}
		parse := func(list string) (addrs []addr.Addr, text string, err error) {
			var flags struct {
				Listen []addr.Addr
				Bind   string
			}
			parser, err := kong.New(&flags, values...)
			if err != nil {
				t.Fatal(err)
			}
			_, err = parser.Parse([]string{"--bind=" + s, "--listen=" + list})
			return flags.Listen, flags.Bind, err
		}
		addrs, text, err := parse(s)
		if text != s && err == nil {
			t.Fatalf("%q is read as %q", s, text)
		}
		if err != nil {
			return
		}
		var parts []string
		for _, a := range addrs {
			parts = append(parts, strings.ReplaceAll(a.String(), ",", `\,`))
		}
		again, _, err := parse(strings.Join(parts, ","))
		if err != nil || !slices.Equal(again, addrs) {
			t.Fatalf("%q is read as %v, which is read as %v, %v", s, addrs, again, err)
		}
	})
}
