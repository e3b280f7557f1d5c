//go:build linux

package why

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// answer returns a netlink message; size is the size in its header, 0 for the
// real one.
func answer(kind uint16, size int, data []byte) []byte {
	if size == 0 {
		size = unix.NLMSG_HDRLEN + len(data)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, make([]byte, 10)...), data...)
}

func attr(size int, kind uint16, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(size))
	return append(binary.NativeEndian.AppendUint16(b, kind), data...)
}

func TestDiagGuardsEveryLength(t *testing.T) {
	t.Parallel()
	socket := append([]byte{unix.AF_UNIX, unix.SOCK_STREAM, Listening}, make([]byte, 13)...)
	with := func(attrs ...byte) []byte { return append(socket[:len(socket):len(socket)], attrs...) }
	for name, b := range map[string][]byte{
		"a header of 15 bytes":          answer(unix.SOCK_DIAG_BY_FAMILY, 15, socket),
		"a message beyond the end":      answer(unix.SOCK_DIAG_BY_FAMILY, 1000, socket),
		"a socket of 15 bytes":          answer(unix.SOCK_DIAG_BY_FAMILY, 0, socket[:15]),
		"an attribute without a length": answer(unix.SOCK_DIAG_BY_FAMILY, 0, with(attr(0, attrQueue)...)),
		"an attribute of 3 bytes":       answer(unix.SOCK_DIAG_BY_FAMILY, 0, with(attr(3, attrQueue)...)),
		"an attribute beyond the end":   answer(unix.SOCK_DIAG_BY_FAMILY, 0, with(attr(13, attrQueue, 1, 0, 0, 0, 1, 0, 0, 0)...)),
		"an error without a number":     answer(unix.NLMSG_ERROR, 0, []byte{1, 2, 3}),
	} {
		if s, done, err := parseDiag(b); err == nil {
			t.Errorf("%s: read as %+v, done %v", name, s, done)
		}
	}
	// An attribute too short for its value is ignored.
	got, _, err := parseDiag(answer(unix.SOCK_DIAG_BY_FAMILY, 0,
		with(append(attr(8, attrVFS, 1, 0, 0, 0), append(attr(4, attrUID), attr(5, attrQueue, 1, 0, 0, 0)...)...)...)))
	if err != nil || len(got) != 1 || got[0].File != (File{}) || got[0].UID != nil || got[0].Queue != nil {
		t.Errorf("short attributes: %+v, %v", got, err)
	}
	if _, _, err := parseDiag(answer(unix.NLMSG_ERROR, 0, binary.NativeEndian.AppendUint32(nil, ^uint32(0)))); err != unix.EPERM {
		t.Errorf("an error of -1 is %v, not EPERM", err)
	}
	if _, done, err := parseDiag(answer(unix.NLMSG_DONE, 0, make([]byte, 4))); !done || err != nil {
		t.Errorf("the end: %v, %v", done, err)
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(answer(unix.SOCK_DIAG_BY_FAMILY, 0, append(make([]byte, 16), attr(12, attrQueue, 1, 0, 0, 0, 1, 0, 0, 0)...)))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = parseDiag(b) })
}
