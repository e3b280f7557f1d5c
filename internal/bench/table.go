package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// WriteTable writes the rows as tables for people, one for each load, of at most
// 100 columns with names of up to 40.
func (r *Result) WriteTable(w io.Writer) error {
	out := new(strings.Builder)
	for group := range slices.Chunk(r.Rows, r.addresses()) {
		t := table.NewWriter()
		t.SetStyle(table.StyleLight)
		t.Style().Format.Header = text.FormatDefault
		t.Style().Options.DrawBorder, t.Style().Options.SeparateColumns = false, false
		t.AppendHeader(table.Row{group[0].Title(), "messages/s", "ratio", "p50", "p99", "server CPU"})
		for _, row := range group {
			t.AppendRow(table.Row{
				row.Name, fmt.Sprintf("%.0f", row.Rate), fmt.Sprintf("%.2f [%.2f-%.2f]", row.Ratio, row.RatioMin, row.RatioMax),
				took(row.P50), took(row.P99), took(int64(1000 * row.ServerCPU)),
			})
		}
		right := []table.ColumnConfig{{Number: 1, WidthMin: 20}}
		for i := 2; i <= 6; i++ {
			right = append(right, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight, WidthMin: 10})
		}
		right[5].Hidden = !slices.ContainsFunc(group, func(row *Row) bool { return row.ServerCPU > 0 }) // in other PID namespaces
		t.SetColumnConfigs(right)
		fmt.Fprintf(out, "%s\n\n", t.Render())
	}
	base := "the first address"
	if r.Base > 1 {
		base = fmt.Sprintf("the fastest of the first %d addresses", r.Base)
	}
	fmt.Fprintf(out, "%s, %d CPUs, %s; %d rounds. Rates are medians of the rounds. A ratio is to %s in the same round,\n"+
		"and then the median of these with its range: not the ratio of two medians, as a machine drifts between rounds.\n"+
		"Server CPU is the processor time of the listening process for each message.\n",
		r.Kernel, r.CPUs, r.Go, r.Rounds, base)
	for _, row := range r.Rows {
		if row.FirstError != "" {
			fmt.Fprintf(out, "%s, %s: %d errors, the first: %s\n", row.Name, row.Title(), row.Errors, row.FirstError)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// addresses returns the number of addresses, which each load has been measured with.
func (r *Result) addresses() int {
	for i, row := range r.Rows {
		if i > 0 && row.Name == r.Rows[0].Name {
			return i
		}
	}
	return max(1, len(r.Rows))
}

// Title names a row's load.
func (r *Row) Title() string {
	s := fmt.Sprintf("%d B × %d", r.Size, r.Connections)
	if r.Size%1024 == 0 {
		s = fmt.Sprintf("%d KiB × %d", r.Size/1024, r.Connections)
	}
	if r.Window > 1 {
		s += fmt.Sprintf(", %d in flight", r.Window)
	}
	if !r.Spins {
		s += ", no spin"
	}
	return s
}

func took(ns int64) string {
	d := time.Duration(ns)
	if d == 0 {
		return "-"
	}
	if d < time.Millisecond {
		return fmt.Sprintf("%.1f µs", float64(ns)/1e3)
	}
	return fmt.Sprintf("%.2f ms", float64(ns)/1e6)
}

// WriteJSON writes the rows as JSON for programs.
func (r *Result) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteFile creates the file with the content that write writes.
func WriteFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = write(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
