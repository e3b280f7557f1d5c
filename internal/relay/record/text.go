package record

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/udsecho/udsecho/internal/logtext"
)

// hexDump formats pieces for people. With colour, escape sequences of
// terminals distinguish the directions.
func hexDump(colour bool) func(*piece) ([]byte, error) {
	return func(p *piece) ([]byte, error) {
		var b bytes.Buffer
		start, end := "", ""
		if colour {
			start, end = "\x1b[36m", "\x1b[0m"
			if p.toTarget {
				start = "\x1b[32m"
			}
		}
		if p.lost > 0 {
			fmt.Fprintf(&b, "--- %d pieces are lost here\n", p.lost)
		}
		fmt.Fprintf(&b, "%s%s conn %d %s", start, p.when.Format("15:04:05.000000"), p.conn.ID, p.arrow())
		switch p.what {
		case opened:
			b.WriteString("opened" + p.who())
		case ended:
			b.WriteString("end")
		case data:
			fmt.Fprintf(&b, "%d bytes", len(p.payload))
			if len(p.files) > 0 {
				b.WriteString(" with descriptors: " + logtext.Escape(strings.Join(p.files, ", ")))
			}
		}
		b.WriteString("\n" + hex.Dump(p.payload) + end)
		return b.Bytes(), nil
	}
}

func (p *piece) arrow() string {
	switch {
	case p.what == opened:
		return ""
	case p.toTarget:
		return "client -> target: "
	default:
		return "client <- target: "
	}
}

// who describes the client, as far as it is known.
func (p *piece) who() (text string) {
	if p.conn.Peer != "" {
		text = " by " + logtext.Escape(p.conn.Peer)
	}
	if c := p.conn.Cred; c != nil {
		text += fmt.Sprintf(" uid %d gid %d pid %d", c.Uid, c.Gid, c.Pid)
	}
	return text + " to " + logtext.Escape(p.conn.Target)
}

// encodeJSON encodes a piece as an object on a line of its own.
func encodeJSON(p *piece) ([]byte, error) {
	object := struct {
		Time        time.Time `json:"time"`
		Conn        uint64    `json:"conn"`
		Event       string    `json:"event"` // opened, data or end
		Direction   string    `json:"direction,omitempty"`
		Size        *int      `json:"size,omitempty"`
		Bytes       []byte    `json:"bytes,omitempty"` // base64
		Descriptors []string  `json:"descriptors,omitempty"`
		Peer        string    `json:"peer,omitempty"`
		UID         *uint32   `json:"uid"` // of the client; null if not known
		GID         *uint32   `json:"gid"`
		PID         *int32    `json:"pid"`
		Lost        uint64    `json:"lost,omitempty"` // pieces before this one
	}{
		Time: p.when, Conn: p.conn.ID, Event: [...]string{"opened", "data", "end"}[p.what],
		Bytes: p.payload, Descriptors: p.files, Peer: logtext.Escape(p.conn.Peer), Lost: p.lost,
	}
	if p.what != opened {
		object.Direction = "to client"
		if p.toTarget {
			object.Direction = "to target"
		}
	}
	if p.what == data {
		object.Size = new(len(p.payload))
	}
	if c := p.conn.Cred; c != nil {
		object.UID, object.GID, object.PID = &c.Uid, &c.Gid, &c.Pid
	}
	line, err := json.Marshal(object)
	return append(line, '\n'), err
}
