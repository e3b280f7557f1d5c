package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// WriteTable writes the rows as a table for people.
func (r *Result) WriteTable(w io.Writer) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"address", "bytes", "conns", "window", "messages/s", "MB/s", "p50", "p99", "p99.9", "max", "ratio", "p99 ratio", "errors", "client CPU"})
	for i, row := range r.Rows {
		if i > 0 && row.Address == r.Rows[0].Address {
			t.AppendSeparator()
		}
		t.AppendRow(table.Row{
			row.Address, row.Size, row.Connections, row.Window,
			fmt.Sprintf("%.0f", row.Rate), fmt.Sprintf("%.1f", row.Bytes),
			took(row.P50), took(row.P99), took(row.P999), took(row.Max),
			fmt.Sprintf("%.2f [%.2f-%.2f]", row.Ratio, row.RatioMin, row.RatioMax), fmt.Sprintf("%.2f", row.P99Ratio),
			row.Errors, fmt.Sprintf("%.1f µs", row.CPU),
		})
	}
	var right []table.ColumnConfig
	for i := 2; i <= 14; i++ {
		right = append(right, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	base := "the first address"
	if r.Base > 1 {
		base = fmt.Sprintf("the fastest of the first %d addresses in the round", r.Base)
	}
	_, err := fmt.Fprintf(w, "%s\n%s, %d CPUs, %s. %d rounds; ratios are medians over the rounds, to %s.\n",
		t.Render(), r.Kernel, r.CPUs, r.Go, r.Rounds, base)
	for _, row := range r.Rows {
		if row.FirstError != "" && err == nil {
			_, err = fmt.Fprintf(w, "%s, %d bytes, %d connections: %d errors, the first: %s\n", row.Address, row.Size, row.Connections, row.Errors, row.FirstError)
		}
	}
	return err
}

func took(ns int64) string {
	d := time.Duration(ns)
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
