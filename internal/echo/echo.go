// Package echo is the echo protocol that server and client share: the server
// sends the received bytes back, in the chunks in which it received them. Its
// two sides are the packages echoserver and echoclient; the tests here connect
// them.
//
// There are two more conventions. A datagram server, which has no connection
// to close, rejects a client by sending [Refusal]. A client that checks the
// server's health announces that by its name, see [IsHealthCheck].
package echo

import (
	"strings"

	"github.com/udsecho/udsecho/uds/sock"
)

// Refusal returns the message that a datagram server sends to a client that it
// rejects. It is not the echo of the client's message of size bytes.
func Refusal(size int) []byte {
	if size > 0 {
		return []byte{}
	}
	return []byte{0}
}

// HealthName is the prefix of the name of a client that checks the server's
// health. The server trusts it only if the client runs as the server's own
// user.
const HealthName = "@udsecho.healthcheck."

// IsHealthCheck reports whether a client with this name and user checks the
// server's health. Such a client is not logged at info level, and served in
// addition to the limits.
func IsHealthCheck(name string, uid uint32) bool {
	return strings.HasPrefix(name, HealthName) && sock.IsOwnUser(uid)
}
