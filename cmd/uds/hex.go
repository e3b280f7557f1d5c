//go:build linux

package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"io"
)

// A dump writes its input as a hex dump, at once: the last line of a stream
// grows as bytes arrive. Close completes it.
type dump struct {
	out  *bufio.Writer
	hex  io.WriteCloser
	each bool // each write is a message, and gets a dump of its own
}

func newDump(w io.Writer, each bool) *dump {
	out := bufio.NewWriter(w) // the dumper writes each byte by itself
	return &dump{out, hex.Dumper(out), each}
}

func (d *dump) Write(p []byte) (int, error) {
	n, err := d.hex.Write(p)
	if d.each {
		err = errors.Join(err, d.hex.Close())
		d.hex = hex.Dumper(d.out)
	}
	if err == nil {
		err = d.out.Flush()
	}
	return n, err
}

func (d *dump) Close() error {
	if err := d.hex.Close(); err != nil {
		return err
	}
	return d.out.Flush()
}
