// Package echo is the echo protocol that server and client share: the server
// sends the received bytes back, in the chunks in which it received them. [Client]
// is the other side: it sends, receives the echo, and continues after a
// connection broke.
//
// A datagram server, which has no connection to close, rejects a client by
// sending [server.Refusal].
package echo
