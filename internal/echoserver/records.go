package echoserver

import (
	"golang.org/x/sys/unix"
)

// records is a conn of a seqpacket socket: what is received is a whole record
// and goes back as one.
type records conn

// Ready receives one record. Only then is an empty record told from the end of
// the connection, both of which recvmsg(2) reports as 0 bytes: where epoll did
// not say that the peer has shut down, there was a record.
func (r *records) Ready(events uint32) {
	c := (*conn)(r)
	if c.blocked {
		c.send() // what has come meanwhile brings the next call, with its events
		return
	}
	var record []byte
	var end bool
	var err error
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		record, end, err = c.receiver.ReceiveRecord(c.fd)
	} else {
		record, err = c.receiver.Receive(c.fd)
	}
	switch {
	case err == unix.EAGAIN:
	case err != nil:
		c.end(err)
	case end:
		c.end(nil)
	default:
		c.received(record)
		c.sendBack(record)
	}
}
