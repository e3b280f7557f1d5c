package main_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// grab asks an X server for a picture of its screen, 8 × 8 pixels, in memory
// whose descriptor the server sends: the extension MIT-SHM 1.2, whose requests
// AttachFd and GetImage are written in bytes here. It returns the memory.
func grab(t *testing.T, path string) ([]byte, error) {
	t.Helper()
	dialled, err := net.Dial("unix", path)
	check(t, err)
	defer func() { _ = dialled.Close() }()
	conn := dialled.(halfCloser)
	le := binary.LittleEndian
	if _, err := conn.Write([]byte("l\x00\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00")); err != nil {
		return nil, err
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(conn, head); err != nil || head[0] != 1 {
		return nil, fmt.Errorf("setup: %w, %x", err, head)
	}
	setup := make([]byte, 4*int(le.Uint16(head[6:])))
	if _, err := io.ReadFull(conn, setup); err != nil {
		return nil, err
	}
	id := le.Uint32(setup[4:])
	vendor, formats := int(le.Uint16(setup[16:])), int(setup[21])
	root := le.Uint32(setup[32+(vendor+3)/4*4+8*formats:])
	answer := make([]byte, 32)
	if _, err := conn.Write(append([]byte{98, 0, 4, 0, 7, 0, 0, 0}, "MIT-SHM\x00"...)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	major := answer[9]
	memory, err := unix.MemfdCreate("picture", unix.MFD_CLOEXEC)
	check(t, err)
	f := os.NewFile(uintptr(memory), "picture")
	defer func() { _ = f.Close() }()
	check(t, f.Truncate(4096))
	attach := le.AppendUint32(append([]byte{major, 6, 3, 0}, le.AppendUint32(nil, id)...), 0)
	if _, _, err := dialled.(*net.UnixConn).WriteMsgUnix(attach, unix.UnixRights(memory), nil); err != nil {
		return nil, err
	}
	get := []byte{major, 4, 8, 0}
	for _, n := range []uint32{root, 0, 8 | 8<<16, ^uint32(0), 2, id, 0} {
		get = le.AppendUint32(get, n)
	}
	if _, err := conn.Write(get); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, answer); err != nil || answer[0] != 1 {
		return nil, fmt.Errorf("GetImage: %w, %x", err, answer)
	}
	picture := make([]byte, le.Uint32(answer[12:]))
	_, err = f.ReadAt(picture, 0)
	return picture, err
}

func TestForwardPassesMemoryToAnXServer(t *testing.T) {
	t.Parallel()
	need(t, "Xvfb", "xvfb")
	d := dir(t)
	x := start(t, d, "Xvfb", "-displayfd", "1", "-screen", "0", "64x64x24", "-nolisten", "tcp", "-noreset", "-wr")
	x.Out.Await(t, 1, "\n")
	socket := "/tmp/.X11-unix/X" + strings.TrimSpace(x.Out.String())
	defer func() {
		x.Terminate(t)
	}()
	forward(t, d, "stream:r", "stream:"+socket, "--pass-files")
	picture, err := grab(t, d+"/r")
	if check(t, err); !bytes.Equal(bytes.ReplaceAll(picture, []byte{0}, []byte{255}), bytes.Repeat([]byte{255}, 256)) || !bytes.Contains(picture, []byte{255, 255, 255}) {
		t.Errorf("the white screen looks like %x", picture)
	}
	relay := forward(t, d, "stream:q", "stream:"+socket)
	picture, err = grab(t, d+"/q")
	if err == nil {
		t.Errorf("without --pass-files: %x", picture)
	}
	if errors.Is(err, unix.EPERM) { // by the kernel, since Linux 6.16
		return
	}
	relay.Err.Await(t, 1, "disconnected a client: the client's message carries file descriptors; --pass-files passes descriptors on")
}
