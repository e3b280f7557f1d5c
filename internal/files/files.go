// Package files defines how to pass a file instead of its bytes. A client
// sends a descriptor through the socket, SCM_RIGHTS of unix(7). The server
// reads the file, which need not exist in its own container, and answers with
// size and SHA-256.
//
// The protocol is one record there and one back, over a seqpacket connection,
// any number of times:
//
//	client  sum 1                    with exactly one descriptor
//	server  sum 1 SIZE SHA256        decimal bytes, 64 hexadecimal digits
//	        error TEXT               one line; what is wrong, and the cure
//
// The 1 is the version. The server closes the connection after a record that
// breaks the protocol. It does not after a file that it does not read.
//
// A server trusts no descriptor. It accepts regular files and memory,
// memfd_create(2), open for reading, and reads them with pread(2) up to the
// size that they had at first. It maps only memory that cannot change any
// more: if a page is truncated away while it is mapped, its reader is killed
// by SIGBUS. So it requires the seals F_SEAL_SHRINK, F_SEAL_GROW and
// F_SEAL_WRITE, fcntl(2). Of that memory it maps only the ranges that hold
// data: touching a hole would allocate memory, charged to the server.
package files

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Request is the record that a client sends, with the descriptor.
const Request = "sum 1"

// MaxRecord is larger than any record, in bytes.
const MaxRecord = 1024

// Seals are the seals of memory that no process can change any more, fcntl(2).
const Seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// A Sum is what the server read in a file.
type Sum struct {
	Size   int64 // bytes
	SHA256 [sha256.Size]byte
}

// String returns the sum as an answer.
func (s Sum) String() string { return fmt.Sprintf("%s %d %x", Request, s.Size, s.SHA256) }

// ParseAnswer parses an answer, which may come from an untrusted process.
func ParseAnswer(answer string) (s Sum, err error) {
	if text, ok := strings.CutPrefix(answer, "error "); ok {
		return s, fmt.Errorf("the server rejected the file: %s", text)
	}
	rest, ok := strings.CutPrefix(answer, Request+" ")
	size, digits, _ := strings.Cut(rest, " ")
	if ok && len(digits) == 2*len(s.SHA256) {
		if s.Size, err = strconv.ParseInt(size, 10, 64); err == nil && s.Size >= 0 {
			_, err = hex.Decode(s.SHA256[:], []byte(digits))
		}
		if err == nil && s.String() == answer {
			return s, nil
		}
	}
	return Sum{}, fmt.Errorf("the answer is %q; the server is not a files: server", answer)
}
