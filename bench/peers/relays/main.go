// Command relays measures relays side by side, in rounds that measure all of
// them in turn. It is also their target: a server that echoes, or only
// receives.
//
//	relays TARGET ROUNDS NAME=GROUP=ADDRESS...
//
// TARGET is the address on which it listens, /path or HOST:PORT. A relay's
// ADDRESS is the address on which the relay listens. GROUP is the relay's
// process group, whose memory is counted, 0 for none.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

type relay struct{ name, group, address string }

func network(address string) string {
	if address[0] == '/' {
		return "unix"
	}
	return "tcp"
}

// doing names the current measurement, for error texts.
var doing string

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintf(os.Stderr, "relays: %s: %v\n", doing, err)
		os.Exit(1)
	}
	return v
}

const size = 1 << 30 // bytes that throughput sends

// blocking takes a connection away from Go's poller, so that its wake-ups are
// not measured. A C program would use the socket in this way.
func blocking(conn net.Conn) *os.File {
	f := must(conn.(interface{ File() (*os.File, error) }).File())
	_ = conn.Close()
	_ = f.Fd() // makes it block
	return f
}

// serve echoes after an e; after an s it answers when everything has arrived.
// It does not wait for a half-close, because socket-proxyd then gives up the
// other direction.
func serve(accepted net.Conn) {
	conn := blocking(accepted)
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 256<<10)
	if _, err := io.ReadFull(conn, buf[:1]); err != nil {
		return
	}
	echo := buf[0] == 'e'
	for got := 0; got < size; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if echo {
			_, _ = conn.Write(buf[:n])
		} else {
			got += n
		}
	}
	_, _ = conn.Write([]byte("k"))
}

func (r relay) dial(kind string) *os.File {
	conn := blocking(must(net.Dial(network(r.address), r.address)))
	must(conn.Write([]byte(kind)))
	return conn
}

// throughput returns MB/s of 1 GiB one way.
func (r relay) throughput() float64 {
	conn := r.dial("s")
	defer func() { _ = conn.Close() }()
	piece := make([]byte, 256<<10)
	from := time.Now()
	for sent := 0; sent < size; sent += len(piece) {
		must(conn.Write(piece))
	}
	must(io.ReadFull(conn, piece[:1]))
	return size / 1e6 / time.Since(from).Seconds()
}

// roundTrip returns the median round trip of 64 bytes, in µs.
func (r relay) roundTrip() float64 {
	conn := r.dial("e")
	defer func() { _ = conn.Close() }()
	var times []float64
	for message := make([]byte, 64); len(times) < 20_000; {
		from := time.Now()
		must(conn.Write(message))
		must(io.ReadFull(conn, message))
		times = append(times, float64(time.Since(from).Nanoseconds())/1e3)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// connections returns how many connections a second are made, echo 64 bytes
// and are closed, by 4 clients.
func (r relay) connections() float64 {
	const each = 250
	var all sync.WaitGroup
	from := time.Now()
	for range 4 {
		all.Go(func() {
			for range each {
				r.echo(r.dial("e")).Close()
			}
		})
	}
	all.Wait()
	return 4 * each / time.Since(from).Seconds()
}

func (r relay) echo(conn *os.File) *os.File {
	message := make([]byte, 64)
	must(conn.Write(message))
	must(io.ReadFull(conn, message))
	return conn
}

// memory returns the memory of 1,000 connections after an echo, in KiB each:
// the share of all processes of the relay.
func (r relay) memory() float64 {
	if r.group == "0" {
		return 0
	}
	before := r.pss()
	var held []*os.File
	for range 1000 {
		held = append(held, r.echo(r.dial("e")))
	}
	after := r.pss()
	for _, conn := range held {
		_ = conn.Close()
	}
	return (after - before) / 1000
}

func (r relay) pss() (kib float64) {
	stats := must(filepath.Glob("/proc/[0-9]*/stat"))
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		_, after, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(after); len(f) < 3 || f[2] != r.group {
			continue
		}
		rollup, _ := os.ReadFile(filepath.Dir(stat) + "/smaps_rollup")
		_, pss, _ := strings.Cut(string(rollup), "\nPss:")
		if f := strings.Fields(pss); len(f) > 0 {
			n, _ := strconv.ParseFloat(f[0], 64)
			kib += n
		}
	}
	return kib
}

func main() {
	target, rounds := os.Args[1], must(strconv.Atoi(os.Args[2]))
	var relays []relay
	for _, arg := range os.Args[3:] {
		f := strings.SplitN(arg, "=", 3)
		relays = append(relays, relay{f[0], f[1], f[2]})
	}
	l := must(net.Listen(network(target), target))
	go func() {
		for {
			go serve(must(l.Accept()))
		}
	}()
	columns := []struct {
		name    string
		measure func(relay) float64
	}{
		{"1 GiB, MB/s", relay.throughput}, {"round trip, µs", relay.roundTrip},
		{"connections/s", relay.connections}, {"held, KiB each", relay.memory},
	}
	fmt.Print("| relay |")
	for _, c := range columns {
		fmt.Printf(" %s |", c.name)
	}
	fmt.Println("\n|---|---|---|---|---|")
	results := map[string][]float64{}
	for round := range rounds {
		for i := range relays {
			r := relays[(i+round)%len(relays)]
			for j, c := range columns {
				if round > 0 && j == len(columns)-1 {
					continue // freed memory is used again: only the first round shows the need
				}
				doing = r.name + ", " + c.name
				results[r.name+c.name] = append(results[r.name+c.name], c.measure(r))
			}
		}
	}
	for _, r := range relays {
		fmt.Printf("| %s |", r.name)
		for _, c := range columns {
			all := results[r.name+c.name]
			slices.Sort(all)
			if len(all) == 1 {
				fmt.Printf(" %.1f |", all[0])
				continue
			}
			fmt.Printf(" %.1f (%.1f–%.1f) |", all[len(all)/2], all[0], all[len(all)-1])
		}
		fmt.Println()
	}
}
