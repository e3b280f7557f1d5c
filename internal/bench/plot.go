//go:build !noplot

package bench

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// WritePlot draws, for each size and number of connections, the latency by
// percentile and the throughput of each address.
func (r *Result) WritePlot(path string) error {
	var groups [][]*Row
	for i, row := range r.Rows {
		if i == 0 || row.Address == r.Rows[0].Address {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], row)
	}
	plots := make([][]*plot.Plot, 2)
	for _, rows := range groups {
		latency, err := latencies(rows)
		if err != nil {
			return err
		}
		rate, err := throughput(rows)
		if err != nil {
			return err
		}
		plots[0], plots[1] = append(plots[0], latency), append(plots[1], rate)
	}
	width, height := 6*vg.Inch*vg.Length(len(groups)), 8*vg.Inch
	var canvas interface {
		vg.CanvasSizer
		io.WriterTo
	} = vgimg.PngCanvas{Canvas: vgimg.New(width, height)}
	if strings.EqualFold(filepath.Ext(path), ".svg") {
		canvas = vgsvg.New(width, height)
	}
	tiles(plots, canvas)
	return WriteFile(path, func(w io.Writer) error {
		_, err := canvas.WriteTo(w)
		return err
	})
}

func tiles(plots [][]*plot.Plot, c vg.CanvasSizer) {
	t := draw.Tiles{Rows: len(plots), Cols: len(plots[0]), PadX: vg.Millimeter * 6, PadY: vg.Millimeter * 6,
		PadTop: vg.Millimeter * 2, PadBottom: vg.Millimeter * 2, PadLeft: vg.Millimeter * 2, PadRight: vg.Millimeter * 6}
	canvases := plot.Align(plots, t, draw.New(c))
	for i, row := range plots {
		for j, p := range row {
			p.Draw(canvases[i][j])
		}
	}
}

func title(row *Row) string {
	s := fmt.Sprintf("%d bytes × %d connections", row.Size, row.Connections)
	if row.Window > 1 {
		s += fmt.Sprintf(", %d in flight", row.Window)
	}
	return s
}

// latencies plots the percentiles so that each step to the right is ten times
// rarer.
func latencies(rows []*Row) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Latency: " + title(rows[0])
	p.X.Label.Text = "percentile"
	p.Y.Label.Text = "µs"
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	p.X.Tick.Marker = plot.ConstantTicks{
		{Value: 0, Label: "0"}, {Value: 1, Label: "90"}, {Value: 2, Label: "99"}, {Value: 3, Label: "99.9"}, {Value: 4, Label: "99.99"},
	}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for i, row := range rows {
		var points plotter.XYs
		for x := 0.0; x <= 4; x += 0.05 {
			v := row.histogram.ValueAtQuantile(100 * (1 - math.Pow(10, -x)))
			points = append(points, plotter.XY{X: x, Y: float64(max(v, 1)) / 1e3})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = plotutil.Color(i), vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(row.Address, line)
	}
	p.Y.Max *= 5 // room for the legend
	return p, nil
}

func throughput(rows []*Row) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Throughput: " + title(rows[0])
	p.Y.Label.Text = "messages/s"
	p.Y.Min = 0
	p.Y.Tick.Marker = plot.TickerFunc(func(low, high float64) []plot.Tick {
		ticks := plot.DefaultTicks{}.Ticks(low, high)
		for i, t := range ticks {
			if t.Label != "" {
				ticks[i].Label = fmt.Sprintf("%.0f", t.Value)
			}
		}
		return ticks
	})
	names := make([]string, len(rows))
	for i, row := range rows {
		bar, err := plotter.NewBarChart(plotter.Values{row.Rate}, vg.Points(30))
		if err != nil {
			return nil, err
		}
		bar.Color, bar.LineStyle.Color = plotutil.Color(i), color.Transparent
		bar.XMin = float64(i)
		p.Add(bar)
		kind, name, _ := strings.Cut(row.Address, ":")
		names[i] = kind + ":\n" + filepath.Base(name)
	}
	p.NominalX(names...)
	p.X.Tick.Label.Font.Size = vg.Points(8)
	return p, nil
}
