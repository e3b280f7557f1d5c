package record

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// Every form of the record contains exactly the bytes that peers sent, and
// writes nothing but its dump to a terminal.
func FuzzForms(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte("\x1b[2J"), "/run/s", "peer\n\x1b]0;")
	f.Add([]byte{}, []byte{}, "", "")
	f.Add(bytes.Repeat([]byte{7}, 200_000), []byte{0}, "X1", "\xff")
	f.Fuzz(func(t *testing.T, up, down []byte, target, peer string) {
		conn := &Conn{ID: 1 << 30, Peer: peer, Target: target, Cred: &unix.Ucred{Pid: 1}}
		pieces := []*piece{
			{what: opened}, {what: data, toTarget: true, payload: up, files: []string{"socket"}}, {what: data, payload: down, lost: 3},
			{what: ended}, {what: ended, toTarget: true},
		}
		capture, header, err := capture(5432)
		if err != nil {
			t.Fatal(err)
		}
		file := bytes.NewBuffer(header)
		for _, p := range pieces {
			p.conn, p.when = conn, time.Unix(1e9, 0)
			text, err := hexDump(false)(p)
			if err != nil || !utf8.Valid(text) || bytes.ContainsAny(text, "\x1b\r\a\x00") {
				t.Errorf("%q, %v", text, err)
			}
			line, err := encodeJSON(p)
			var o struct {
				Bytes []byte
				Lost  uint64
			}
			if err != nil || json.Unmarshal(line, &o) != nil || !bytes.Equal(o.Bytes, p.payload) || o.Lost != p.lost || bytes.Count(line, []byte("\n")) != 1 {
				t.Errorf("%q, %v", line, err)
			}
			block, err := capture(p)
			if err != nil {
				t.Fatal(err)
			}
			file.Write(block)
		}
		r, err := pcapgo.NewNgReader(file, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			t.Fatal(err)
		}
		var got [2][]byte
		for {
			packet, _, err := r.ReadPacketData()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			tcp := gopacket.NewPacket(packet, layers.LayerTypeIPv4, gopacket.Default).TransportLayer().(*layers.TCP)
			side := 0
			if tcp.SrcPort == 5432 {
				side = 1
			} else if tcp.DstPort != 5432 {
				t.Errorf("the target's port is %d", tcp.DstPort)
			}
			if tcp.Seq-1 != uint32(len(got[side])) && !tcp.SYN {
				t.Errorf("byte %d has the number %d", len(got[side]), tcp.Seq-1)
			}
			got[side] = append(got[side], tcp.Payload...)
		}
		if !bytes.Equal(got[0], up) || !bytes.Equal(got[1], down) {
			t.Errorf("the capture has %d and %d bytes, not %d and %d", len(got[0]), len(got[1]), len(up), len(down))
		}
	})
}
