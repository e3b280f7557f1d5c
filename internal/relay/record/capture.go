package record

import (
	"bytes"
	"fmt"
	"net"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// A stream shows a connection as TCP would have carried it. Its addresses are
// invented: the client of connection N is 10.x.y.z with N for x.y.z, the
// target is 127.0.0.1. Wireshark chooses the protocol by the target's port.
type stream struct {
	port uint16
	next [2]uint32 // sequence numbers of the client, and of the target
	note []string  // for the next packet
}

const (
	clientPort = 40000
	maxSegment = 65535 - 20 - 20 // fits IPv4 with its header and TCP's
)

// capture turns pieces into blocks of a pcapng file, in which the target has
// this port, and returns the header of such a file. The size of lost pieces is
// not known. So their stream continues as if they had not existed; the block
// states how many were lost.
func capture(port uint16) (encode func(*piece) ([]byte, error), header []byte, err error) {
	var out bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&out, pcapgo.NgInterface{
		Name: "relay", Description: "uds forward: each connection as a TCP stream with made-up addresses",
		LinkType: layers.LinkTypeRaw, TimestampResolution: 9,
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "udsecho uds forward"}})
	if err == nil {
		err = w.Flush()
	}
	header = bytes.Clone(out.Bytes())
	return func(p *piece) ([]byte, error) {
		out.Reset()
		if err := p.packets(w, port); err != nil {
			return nil, err
		}
		if err := w.Flush(); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}, header, err
}

// packets writes a piece.
func (p *piece) packets(w *pcapgo.NgWriter, port uint16) error {
	s := p.conn.stream
	if s == nil {
		s = &stream{port: port, note: []string{"opened" + p.who()}}
		p.conn.stream = s
		if err := s.packet(w, p, true, layers.TCP{SYN: true, Options: wide}, nil); err != nil {
			return err
		}
		if err := s.packet(w, p, false, layers.TCP{SYN: true, ACK: true, Options: wide}, nil); err != nil {
			return err
		}
		if err := s.packet(w, p, true, layers.TCP{ACK: true}, nil); err != nil {
			return err
		}
	}
	if p.what == opened {
		return nil
	}
	if len(p.files) > 0 {
		s.note = append(s.note, "with descriptors: "+strings.Join(p.files, ", "))
	}
	if p.what == ended {
		return s.packet(w, p, p.toTarget, layers.TCP{FIN: true, ACK: true}, nil)
	}
	for rest := p.payload; ; {
		n := min(len(rest), maxSegment)
		if err := s.packet(w, p, p.toTarget, layers.TCP{PSH: true, ACK: true}, rest[:n]); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}

// wide allows the other side to send more than 64 KiB at once: RFC 7323, shift
// count 14.
var wide = []layers.TCPOption{{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{14}}}

func (s *stream) packet(w *pcapgo.NgWriter, p *piece, toTarget bool, tcp layers.TCP, payload []byte) error {
	client, target := net.IPv4(10, byte(p.conn.ID>>16), byte(p.conn.ID>>8), byte(p.conn.ID)), net.IPv4(127, 0, 0, 1)
	ip := layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: client, DstIP: target}
	tcp.SrcPort, tcp.DstPort, tcp.Window = clientPort, layers.TCPPort(s.port), 65535
	from, to := 0, 1
	if !toTarget {
		from, to = 1, 0
		ip.SrcIP, ip.DstIP = target, client
		tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
	}
	tcp.Seq = s.next[from]
	if tcp.ACK {
		tcp.Ack = s.next[to]
	}
	s.next[from] += uint32(len(payload))
	if tcp.SYN || tcp.FIN {
		s.next[from]++
	}
	if err := tcp.SetNetworkLayerForChecksum(&ip); err != nil {
		return err
	}
	packet := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(packet, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &ip, &tcp, gopacket.Payload(payload))
	if err != nil {
		return err
	}
	options := pcapgo.NgPacketOptions{Comments: s.note}
	if p.lost > 0 {
		options.DropCount = new(p.lost)
		options.Comments = append(options.Comments, fmt.Sprintf("%d pieces are lost before this one", p.lost))
		p.lost = 0
	}
	s.note = nil
	n := len(packet.Bytes())
	return w.WritePacketWithOptions(gopacket.CaptureInfo{Timestamp: p.when, CaptureLength: n, Length: n}, packet.Bytes(), options)
}
