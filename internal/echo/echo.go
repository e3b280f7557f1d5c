// Package echo is the protocol of the echo, which server and client have in
// common: what is received is sent back, in the chunks in which it was received.
// Its two sides are packages of their own, echoserver and echoclient; the tests
// here have them talk to each other.
//
// Beyond that there are two conventions. A datagram server, which has no
// connection to close, tells a client that it does not serve it by [Refusal]. And
// a client that checks the server's health says so by its name, see
// [IsHealthCheck].
package echo

import (
	"strings"

	"github.com/udsecho/udsecho/uds"
)

// Refusal is what a datagram server sends to a client that it does not serve:
// not the echo of its message of size bytes.
func Refusal(size int) []byte {
	if size > 0 {
		return []byte{}
	}
	return []byte{0}
}

// HealthName is how the name of a client starts that checks the server's health.
// It is believed only of a client that runs as the server's own user.
const HealthName = "@udsecho.healthcheck."

// IsHealthCheck reports whether a client of this name and user checks the
// server's health: it is not mentioned at info level, and served beside the
// limits.
func IsHealthCheck(name string, uid uint32) bool {
	return strings.HasPrefix(name, HealthName) && uds.IsOwnUser(uid)
}
