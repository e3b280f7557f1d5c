package main

import (
	"encoding/csv"
	"io"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// scale draws the times of a DaemonSet and the memory of its control plane, by
// number of nodes.
func scale(in io.Reader) ([]*plot.Plot, vg.Length, error) {
	table, err := csv.NewReader(in).ReadAll()
	if err != nil {
		return nil, 0, err
	}
	return []*plot.Plot{lines("time (s)", table, 1, 2, 3, 4), lines("memory (MiB)", table, 5, 6)}, 11 * vg.Inch, nil
}

// lines draws columns of the table, whose first row names them, over the first.
// What is not a number, as an update that took too long, is left out.
func lines(label string, table [][]string, columns ...int) *plot.Plot {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = "nodes", label
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for _, column := range columns {
		var points plotter.XYs
		for _, row := range table[1:] {
			x, errX := strconv.ParseFloat(row[0], 64)
			y, errY := strconv.ParseFloat(row[column], 64)
			if errX == nil && errY == nil && x > 0 && y > 0 {
				points = append(points, plotter.XY{X: x, Y: y})
			}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			continue // no point at all
		}
		line.Color, dots.Color, dots.Shape = plotutil.Color(column), plotutil.Color(column), draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(table[0][column], line, dots)
	}
	p.Y.Max *= 20 // room for the legend
	return p
}
