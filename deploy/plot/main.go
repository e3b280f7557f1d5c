// Command plot draws docs/scale.csv, which `make kubernetes-scale` measures: the
// times of a DaemonSet and the memory of its control plane, by number of nodes.
//
//	plot CSV PNG
package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("name the CSV file to read and the PNG file to write")
	}
	in, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	table, err := csv.NewReader(in).ReadAll()
	if err != nil {
		return err
	}
	canvas := vgimg.New(11*vg.Inch, 4*vg.Inch)
	plots := [][]*plot.Plot{{chart("time (s)", table, 1, 2, 3, 4), chart("memory (MiB)", table, 5, 6)}}
	tiles := draw.Tiles{Rows: 1, Cols: 2, PadX: vg.Millimeter * 6, PadTop: vg.Millimeter * 2, PadBottom: vg.Millimeter * 2, PadLeft: vg.Millimeter * 2, PadRight: vg.Millimeter * 4}
	for i, c := range plot.Align(plots, tiles, draw.New(canvas))[0] {
		plots[0][i].Draw(c)
	}
	out, err := os.Create(args[1])
	if err != nil {
		return err
	}
	_, err = vgimg.PngCanvas{Canvas: canvas}.WriteTo(out)
	return errors.Join(err, out.Close())
}

// chart draws columns of the table, whose first row names them, over the first.
// What is not a number, as an update that took too long, is left out.
func chart(label string, table [][]string, columns ...int) *plot.Plot {
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
