package logtext_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/udsecho/udsecho/internal/logtext"
)

func TestQuote(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                          `''`,
		"This is the mess":          `'This is the mess'`,
		" ~":                        `' ~'`,
		"it's":                      `'it\'s'`,
		`a\n`:                       `'a\\n'`,
		"\n\r\t":                    `'\n\r\t'`,
		"\x00\x01\x7f":              `'\x00\x01\x7f'`,
		"\x1b[31mred\x1b[0m":        `'\x1b[31mred\x1b[0m'`,
		"\x9b\xff":                  `'\x9b\xff'`,
		"é":                         `'\xc3\xa9'`,
		`"`:                         `'"'`,
		strings.Repeat("a", 256):    `'` + strings.Repeat("a", 256) + `'`,
		strings.Repeat("a", 257):    `'` + strings.Repeat("a", 256) + `' and 1 bytes more`,
		strings.Repeat("\n", 65536): `'` + strings.Repeat(`\n`, 256) + `' and 65280 bytes more`,
	} {
		if got := logtext.Quote([]byte(in)); got != want {
			t.Errorf("%q is quoted as %s, want %s", in, got, want)
		}
	}
}

func TestQuotePassesNoByteThatDoesNotPrint(t *testing.T) {
	t.Parallel()
	seen := map[string]byte{}
	for b := range 256 {
		got := logtext.Quote([]byte{byte(b)})
		for i := range len(got) {
			if got[i] < 0x20 || got[i] > 0x7e {
				t.Errorf("%#02x is quoted as %q", b, got)
			}
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%#02x and %#02x are both quoted as %s", b, other, got)
		}
		seen[got] = byte(b)
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                    "",
		"./uds_socket":        "./uds_socket",
		"it's a \\ \"quote\"": "it's a \\ \"quote\"",
		"Grüße, 世界":           "Grüße, 世界",
		"two\nlines\r\t":      `two\nlines\r\t`,
		"\x1b]0;title\x07":    `\x1b]0;title\x07`,
		"\x7f":                `\x7f`,
		"\u009b31m":           `\xc2\x9b31m`,    // CSI in one character
		"a\u202eb":            `a\xe2\x80\xaeb`, // changes the direction of writing
		"a\u2028b":            `a\xe2\x80\xa8b`, // a line separator
		"\xff\xfe":            `\xff\xfe`,       // not UTF-8
		"\ufffd":              "\ufffd",         // its replacement, spelled out
		"\x1b" + "é" + "\x1b": `\x1b` + "é" + `\x1b`,
	} {
		if got := logtext.Escape(in); got != want {
			t.Errorf("%q is escaped as %q, want %q", in, got, want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[2J\u009b\u202e\xff\n", "a\\n", "Grüße", "\u2028", "\ufffd\xed\xa0\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		escaped := logtext.Escape(s)
		printable := true
		for _, r := range s {
			printable = printable && unicode.IsPrint(r)
		}
		for _, r := range escaped {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q is escaped as %q, with %U", s, escaped, r)
			}
		}
		if !utf8.ValidString(escaped) || logtext.Escape(escaped) != escaped || printable && utf8.ValidString(s) && escaped != s {
			t.Fatalf("%q is escaped as %q", s, escaped)
		}
	})
}

// A quoted text that is not cut can be read back.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"plain", "it's \\x41", "\x00\x1b\x7f\x9b\xff\r\n\t", "'", "\\", strings.Repeat("\\", 300)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		quoted := logtext.Quote(payload)
		for i := range len(quoted) {
			if quoted[i] < 0x20 || quoted[i] > 0x7e {
				t.Fatalf("%q is quoted as %q", payload, quoted)
			}
		}
		shown := payload[:min(len(payload), 256)]
		rest, want := quoted[1:], "'"
		if more := len(payload) - len(shown); more > 0 {
			want = fmt.Sprintf("' and %d bytes more", more)
		}
		for _, b := range shown {
			r, _, tail, err := strconv.UnquoteChar(rest, '\'')
			if err != nil || r != rune(b) {
				t.Fatalf("%q is quoted as %q: %q is there for %#02x (%v)", payload, quoted, rest, b, err)
			}
			rest = tail
		}
		if rest != want {
			t.Fatalf("%q is quoted as %q, which ends with %q", payload, quoted, rest)
		}
	})
}

func ExampleQuote() {
	fmt.Println(logtext.Quote([]byte("it's\x1b[31m red\n")))
	// Output: 'it\'s\x1b[31m red\n'
}
