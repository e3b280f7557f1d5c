package main

import (
	"fmt"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// A forecast is what the model says of a number of nodes.
type forecast struct {
	tasks   float64
	pulled  float64 // bytes, the first time
	control float64 // bytes a second between the nodes
	updates float64 // seconds, one node after the other
}

// A model is the measurements carried on in straight lines; docs/scale.md says
// what that takes for granted.
type model struct{ most, least measurement }

func (m model) of(nodes float64) forecast {
	// What one more node costs.
	more := float64(m.most.Nodes - m.least.Nodes)
	return forecast{
		tasks:   nodes * float64(m.most.Tasks) / float64(m.most.Nodes),
		pulled:  nodes * float64(m.most.Images),
		control: (nodes - 1) * (m.most.Idle - m.least.Idle) / more,
		updates: m.least.Update + (nodes-1)*(m.most.Update-m.least.Update)/more,
	}
}

// plotScale draws what was measured on the left, and what the model makes of it
// on the right.
func plotScale(all []measurement, path string) error {
	if len(all) < 2 {
		return fmt.Errorf("--plot %s: the model needs clusters of two sizes at least: --nodes 2", path)
	}
	measured, err := plotLatency(all)
	if err != nil {
		return err
	}
	forecast, err := plotModel(model{most: all[len(all)-1], least: all[0]})
	if err != nil {
		return err
	}
	plots := [][]*plot.Plot{{measured, forecast}}
	canvas := vgimg.PngCanvas{Canvas: vgimg.New(12*vg.Inch, 4.5*vg.Inch)}
	tiles := draw.Tiles{Rows: 1, Cols: 2, PadX: vg.Millimeter * 8, PadTop: vg.Millimeter * 2, PadBottom: vg.Millimeter * 2, PadRight: vg.Millimeter * 6}
	for i, c := range plot.Align(plots, tiles, draw.New(canvas))[0] {
		plots[0][i].Draw(c)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func plotLatency(all []measurement) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Measured: an echo of 64 bytes on each node"
	p.X.Label.Text = "nodes in the cluster"
	p.Y.Label.Text = "µs"
	p.Y.Min = 0
	p.X.Min, p.X.Max = float64(all[0].Nodes)-0.5, float64(all[len(all)-1].Nodes)+0.5
	var ticks plot.ConstantTicks
	var p50, p99 plotter.XYs
	for _, m := range all {
		ticks = append(ticks, plot.Tick{Value: float64(m.Nodes), Label: fmt.Sprint(m.Nodes)})
		for i := range m.P50 {
			// Beside each other, or they hide each other.
			x := float64(m.Nodes) + 0.06*(float64(i)-float64(len(m.P50)-1)/2)
			p50 = append(p50, plotter.XY{X: x, Y: float64(m.P50[i]) / 1e3})
			p99 = append(p99, plotter.XY{X: x, Y: float64(m.P99[i]) / 1e3})
		}
	}
	p.X.Tick.Marker = ticks
	p.Add(plotter.NewGrid())
	for i, line := range []struct {
		name   string
		points plotter.XYs
	}{{"p50, one point a node", p50}, {"p99", p99}} {
		s, err := plotter.NewScatter(line.points)
		if err != nil {
			return nil, err
		}
		s.Color, s.Shape, s.Radius = plotutil.Color(i), plotutil.Shape(i), vg.Points(4)
		p.Add(s)
		p.Legend.Add(line.name, s)
		for _, point := range line.points {
			p.Y.Max = max(p.Y.Max, point.Y*1.3)
		}
	}
	p.Legend.Top = true
	return p, nil
}

func plotModel(m model) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Model: what grows with nodes, and what does not"
	p.X.Label.Text = "nodes"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	median := float64(m.most.P50[len(m.most.P50)/2]) / 1e3
	for i, line := range []struct {
		name string
		of   func(nodes float64) float64
	}{
		{"tasks", func(n float64) float64 { return m.of(n).tasks }},
		{"images pulled, MB", func(n float64) float64 { return m.of(n).pulled / 1e6 }},
		{"between the nodes, kB/s", func(n float64) float64 { return m.of(n).control / 1e3 }},
		{"update, one node at a time, s", func(n float64) float64 { return m.of(n).updates }},
		{"an echo, p50, µs", func(float64) float64 { return median }},
	} {
		var points plotter.XYs
		for n := 10.0; n <= 100_000; n *= 10 {
			points = append(points, plotter.XY{X: n, Y: line.of(n)})
		}
		l, s, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		l.Color, l.Width = plotutil.Color(i), vg.Points(1.5)
		s.Color, s.Shape = plotutil.Color(i), plotutil.Shape(i)
		p.Add(l, s)
		p.Legend.Add(line.name, l, s)
	}
	p.Y.Max *= 300 // room for the legend
	return p, nil
}
