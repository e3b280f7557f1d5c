// Package logtext formats what server and client show in their events about
// a peer: the bytes that it sent, and its credentials.
package logtext

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// maxQuoted is how many bytes of a payload a message shows. So a line of the
// log stays readable, whatever a peer sends.
const maxQuoted = 256

// Quote returns a payload as the log shows it: in single quotes, with every
// byte that is not printable ASCII, and ' and \ themselves, escaped. So no
// peer can write control characters to a terminal. After 256 bytes it shows
// only the count of the rest.
func Quote(payload []byte) string {
	shown := payload[:min(len(payload), maxQuoted)]
	out := make([]byte, 0, len(shown)+2)
	out = append(out, '\'')
	out = appendEscaped(out, shown, '\'')
	out = append(out, '\'')
	if more := len(payload) - len(shown); more > 0 {
		out = fmt.Appendf(out, " and %d bytes more", more)
	}
	return string(out)
}

// Escape returns text, such as a path or an error, in a form that is safe on a
// terminal: on one line, with every character that does not print escaped.
func Escape(text string) string {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
			out = appendEscaped(out, []byte(text[:n]), 0)
		} else {
			out = append(out, text[:n]...)
		}
		text = text[n:]
	}
	return string(out)
}

func appendEscaped(out, in []byte, quote byte) []byte {
	const hex = "0123456789abcdef"
	for _, b := range in {
		switch {
		case b == '\n':
			out = append(out, '\\', 'n')
		case b == '\r':
			out = append(out, '\\', 'r')
		case b == '\t':
			out = append(out, '\\', 't')
		case quote != 0 && (b == quote || b == '\\'):
			out = append(out, '\\', b)
		case b < 0x20 || b > 0x7e:
			out = append(out, '\\', 'x', hex[b>>4], hex[b&15])
		default:
			out = append(out, b)
		}
	}
	return out
}

// WithPeer adds the peer's name, if it has one.
func WithPeer(ev *zerolog.Event, name string) *zerolog.Event {
	if name == "" {
		return ev
	}
	return ev.Str("peer", Escape(name))
}

// WithCred adds the peer's credentials, as reported by the kernel.
func WithCred(ev *zerolog.Event, cred *unix.Ucred) *zerolog.Event {
	if cred == nil {
		return ev
	}
	ev = ev.Uint32("uid", cred.Uid).Uint32("gid", cred.Gid)
	if cred.Pid == 0 {
		return ev.Str("pid", "unknown") // the peer is in another process id namespace
	}
	return ev.Int32("pid", cred.Pid)
}
