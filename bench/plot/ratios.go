package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"io"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/udsecho/udsecho/internal/bench"
)

// slot is the width of a bar with the gap beside it.
const slot = 22 * vg.Millimeter / 3

// ratios draws the ratio of each address to the baseline, with its range over the
// rounds, for each size and number of connections.
func ratios(in io.Reader) ([]*plot.Plot, vg.Length, error) {
	var r bench.Result
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return nil, 0, err
	}
	if len(r.Rows) == 0 {
		return nil, 0, errors.New("it has no rows")
	}
	p := plot.New()
	p.Title.Text = "Messages per second, as a ratio to " + baseline(&r)
	p.Y.Label.Text = "median ratio, and its range over the rounds"
	p.Y.Min = 0
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	p.Legend.Top, p.Legend.Padding = true, vg.Millimeter

	var groups []plot.Tick
	n := addresses(&r)
	var at float64 // the next bar, in slots
	for i, row := range r.Rows {
		if i%n == 0 {
			at++ // a gap between groups
			groups = append(groups, plot.Tick{Value: at + float64(n-1)/2, Label: title(row)})
		}
		bar, err := ratio(p, row, at, plotutil.Color(i%n))
		if err != nil {
			return nil, 0, err
		}
		if i < n {
			p.Legend.Add(row.Address, bar)
		}
		at++
	}
	p.X.Min, p.X.Max = 0, at
	p.X.Tick.Marker = plot.ConstantTicks(groups)
	p.X.Tick.Length = 0
	p.Y.Max *= 1.05 + 0.07*float64(n) // room for the legend
	return []*plot.Plot{p}, slot*vg.Length(at) + 30*vg.Millimeter, nil
}

// addresses returns the number of addresses, which each group of rows has.
func addresses(r *bench.Result) int {
	for i, row := range r.Rows[1:] {
		if row.Address == r.Rows[0].Address {
			return i + 1
		}
	}
	return len(r.Rows)
}

// baseline names what the ratios are to.
func baseline(r *bench.Result) string {
	if r.Base > 1 {
		return fmt.Sprintf("the fastest of the first %d addresses", r.Base)
	}
	return r.Rows[0].Address
}

// title names a group of rows.
func title(row *bench.Row) string {
	s := fmt.Sprintf("%d B × %d", row.Size, row.Connections)
	if row.Size%1024 == 0 {
		s = fmt.Sprintf("%d KiB × %d", row.Size/1024, row.Connections)
	}
	if row.Window > 1 {
		s += fmt.Sprintf(", %d in flight", row.Window)
	}
	return s
}

// ratio adds the bar of a row to a plot, at slot number at.
func ratio(p *plot.Plot, row *bench.Row, at float64, fill color.Color) (*plotter.BarChart, error) {
	bar, err := plotter.NewBarChart(plotter.Values{row.Ratio}, slot*4/5)
	if err != nil {
		return nil, err
	}
	bar.Color, bar.LineStyle.Width, bar.XMin = fill, 0, at
	spread, err := plotter.NewYErrorBars(struct {
		plotter.XYs
		plotter.YErrors
	}{
		plotter.XYs{{X: at, Y: row.Ratio}},
		plotter.YErrors{{Low: row.Ratio - row.RatioMin, High: row.RatioMax - row.Ratio}},
	})
	if err != nil {
		return nil, err
	}
	p.Add(bar, spread)
	return bar, nil
}
