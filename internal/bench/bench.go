// Package bench measures echo servers side by side: how many messages a
// second, and how long each takes to return. It compares every byte of the
// echo with the byte sent.
//
// Machines drift. So the rounds interleave the addresses, in an order that
// rotates, and the comparison uses ratios within a round: a row's ratio is the
// median over the rounds, with its range.
package bench

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

// Config defines what to measure: each size with each number of connections,
// at each address.
type Config struct {
	Addrs       []addr.Addr
	Names       []string // of the addresses, in tables and charts; those that have none are called by their address
	Dial        func(context.Context, addr.Addr) (*sock.Conn, error)
	Sizes       []int // of a message, in bytes
	Connections []int
	Window      int           // messages in flight on each connection
	Rate        float64       // messages a second in all, of an open loop; 0: as fast as the echoes arrive
	Warmup      time.Duration // before the measured time, in each round
	Duration    time.Duration // measured time, in each round
	Rounds      int
	Baseline    int           // ratios compare with the fastest of the first Baseline addresses
	Spin        time.Duration // see package loop
	Progress    func(string)
}

// A Row is the measurement of one size, with one number of connections, at one
// address, over all rounds. Latencies are in nanoseconds.
type Row struct {
	Name        string    `json:"name"`
	Address     string    `json:"address"`
	Spins       bool      `json:"client_spins"`
	Size        int       `json:"size_bytes"`
	Connections int       `json:"connections"`
	Window      int       `json:"window"`
	Rate        float64   `json:"messages_per_second"`
	Bytes       float64   `json:"megabytes_per_second"` // one way
	P50         int64     `json:"p50_ns"`
	P99         int64     `json:"p99_ns"`
	P999        int64     `json:"p99_9_ns"`
	Max         int64     `json:"max_ns"`
	Ratio       float64   `json:"ratio"` // of the rate to the baseline
	RatioMin    float64   `json:"ratio_min"`
	RatioMax    float64   `json:"ratio_max"`
	P99Ratio    float64   `json:"p99_ratio"`
	Errors      int64     `json:"errors"`
	FirstError  string    `json:"first_error,omitempty"`
	CPU         float64   `json:"client_cpu_us_per_message"`
	ServerCPU   float64   `json:"server_cpu_us_per_message"` // of the process that listens, on this machine; 0: not known
	Rates       []float64 `json:"rounds_messages_per_second"`
	P99s        []int64   `json:"rounds_p99_ns"`

	histogram      *hdrhistogram.Histogram
	messages       int64
	cpu, serverCPU time.Duration
}

// Result is all rows and the machine they were measured on.
type Result struct {
	Kernel string  `json:"kernel"`
	CPUs   int     `json:"cpus"`
	Go     string  `json:"go"`
	Rounds int     `json:"rounds"`
	Base   int     `json:"baseline_addresses"`
	Target float64 `json:"open_loop_rate,omitempty"`
	Rows   []*Row  `json:"rows"`
}

// Run measures. Errors of a row do not end it, but it ends if it cannot reach
// a server.
func (c Config) Run(ctx context.Context) (*Result, error) {
	result := &Result{Kernel: kernel(), CPUs: runtime.NumCPU(), Go: runtime.Version(), Rounds: c.Rounds, Base: c.Baseline, Target: c.Rate}
	for _, size := range c.Sizes {
		for _, connections := range c.Connections {
			rows := make([]*Row, len(c.Addrs))
			for i, a := range c.Addrs {
				rows[i] = &Row{Name: a.String(), Address: a.String(), Spins: c.Spin > 0, Size: size, Connections: connections, Window: c.Window, histogram: newHistogram()}
				if i < len(c.Names) {
					rows[i].Name = c.Names[i]
				}
			}
			for round := range c.Rounds {
				for i := range c.Addrs {
					i = (i + round) % len(c.Addrs)
					if c.Progress != nil {
						c.Progress(fmt.Sprintf("%d bytes, %d connections, round %d of %d: %s", size, connections, round+1, c.Rounds, c.Addrs[i]))
					}
					m, err := c.measure(ctx, c.Addrs[i], size, connections)
					if err != nil {
						return nil, err
					}
					rows[i].add(m)
				}
			}
			for _, row := range rows {
				row.finish(rows[:c.Baseline])
			}
			result.Rows = append(result.Rows, rows...)
		}
	}
	return result, nil
}

// newHistogram holds latencies from 1 ns to a minute with three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Minute), 3) }

func (r *Row) add(m *measurement) {
	r.Rates = append(r.Rates, float64(m.messages)/m.elapsed.Seconds())
	r.P99s = append(r.P99s, m.histogram.ValueAtQuantile(99))
	r.histogram.Merge(m.histogram)
	r.Errors, r.FirstError = r.Errors+m.errors, cmp.Or(r.FirstError, m.reason)
	r.messages += m.messages
	r.cpu += m.cpu
	r.serverCPU += m.serverCPU
}

func (r *Row) finish(baseline []*Row) {
	r.Rate = median(r.Rates)
	r.Bytes = r.Rate * float64(r.Size) / 1e6
	r.P50, r.P99 = r.histogram.ValueAtQuantile(50), r.histogram.ValueAtQuantile(99)
	r.P999, r.Max = r.histogram.ValueAtQuantile(99.9), r.histogram.Max()
	if r.messages > 0 {
		r.CPU = float64(r.cpu.Microseconds()) / float64(r.messages)
		r.ServerCPU = float64(r.serverCPU.Microseconds()) / float64(r.messages)
	}
	var ratios, p99s []float64
	for i := range r.Rates {
		best := slices.MaxFunc(baseline, func(a, b *Row) int { return cmp.Compare(a.Rates[i], b.Rates[i]) })
		if best.Rates[i] > 0 && best.P99s[i] > 0 {
			ratios = append(ratios, r.Rates[i]/best.Rates[i])
			p99s = append(p99s, float64(r.P99s[i])/float64(best.P99s[i]))
		}
	}
	if len(ratios) > 0 {
		r.Ratio, r.RatioMin, r.RatioMax = median(ratios), slices.Min(ratios), slices.Max(ratios)
		r.P99Ratio = median(p99s)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}
