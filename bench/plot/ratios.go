package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"io"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/udsecho/udsecho/internal/bench"
)

// slot is the width of a bar with the gap beside it.
const slot = 22 * vg.Millimeter / 3

// ratios draws the ratio of each address to the baseline, with its range over the
// rounds, for each load. in is one result after the other, of the same addresses.
func ratios(in io.Reader) ([]*plot.Plot, vg.Length, error) {
	var rows []*bench.Row
	base := 1
	for d := json.NewDecoder(in); ; {
		var r bench.Result
		if err := d.Decode(&r); err == io.EOF && len(rows) > 0 {
			break
		} else if err != nil {
			return nil, 0, err
		}
		rows, base = append(rows, r.Rows...), r.Base
	}
	if len(rows) == 0 {
		return nil, 0, errors.New("it has no rows")
	}
	p := plot.New()
	p.Title.Text = "Messages per second, as a ratio to " + baseline(rows[0].Name, base)
	p.Y.Label.Text = "median ratio, and its range over the rounds"
	p.Y.Min = 0
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	p.Legend.Top, p.Legend.Padding = true, vg.Millimeter

	var groups []plot.Tick
	n := 1 + slices.IndexFunc(rows[1:], func(row *bench.Row) bool { return row.Name == rows[0].Name })
	if n == 0 {
		n = len(rows)
	}
	var at float64 // the next bar, in slots
	for i, row := range rows {
		if i%n == 0 {
			at++ // a gap between groups
			groups = append(groups, plot.Tick{Value: at + float64(n-1)/2, Label: strings.ReplaceAll(row.Title(), ", ", "\n")})
		}
		bar, err := ratio(p, row, at, plotutil.Color(i%n))
		if err != nil {
			return nil, 0, err
		}
		if i < n {
			p.Legend.Add(row.Name, bar)
		}
		at++
	}
	level, err := plotter.NewLine(plotter.XYs{{X: 0, Y: 1}, {X: at, Y: 1}})
	if err != nil {
		return nil, 0, err
	}
	p.Add(level)
	p.X.Min, p.X.Max = 0, at
	p.X.Tick.Marker = plot.ConstantTicks(groups)
	p.X.Tick.Length = 0
	p.Y.Max *= 1.05 + 0.07*float64(n) // room for the legend
	return []*plot.Plot{p}, slot*vg.Length(at) + 30*vg.Millimeter, nil
}

// baseline names what the ratios are to.
func baseline(first string, addresses int) string {
	if addresses > 1 {
		return fmt.Sprintf("the fastest of the first %d", addresses)
	}
	return first
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
