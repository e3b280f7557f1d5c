// Command plot draws what was measured: the ratios of `make bench`, in one file
// or several, or the times and the memory in docs/scale.csv of
// `make kubernetes-scale`.
//
//	plot FILE.json... | FILE.csv  FILE.png|FILE.svg
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgimg" // .png
	_ "gonum.org/v1/plot/vg/vgsvg" // .svg
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("name the files to read, .json, or one .csv, and the file to write, .png or .svg")
	}
	from, to := args[:len(args)-1], args[len(args)-1]
	read := map[string]func(io.Reader) ([]*plot.Plot, vg.Length, error){".json": ratios, ".csv": scale}[filepath.Ext(from[0])]
	if read == nil {
		return fmt.Errorf("%s: unknown format; name a file .json or .csv", from[0])
	}
	var in []io.Reader
	for _, name := range from {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		in = append(in, bytes.NewReader(text))
	}
	plots, width, err := read(io.MultiReader(in...))
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(from, ", "), err)
	}
	canvas, err := draw.NewFormattedCanvas(width, 4*vg.Inch, strings.TrimPrefix(filepath.Ext(to), "."))
	if err != nil {
		return fmt.Errorf("%s: %w; name a file .png or .svg", to, err)
	}
	pad := 2 * vg.Millimeter
	tiles := draw.Tiles{Rows: 1, Cols: len(plots), PadX: 3 * pad, PadTop: pad, PadBottom: pad, PadLeft: pad, PadRight: 2 * pad}
	for i, c := range plot.Align([][]*plot.Plot{plots}, tiles, draw.New(canvas))[0] {
		plots[i].Draw(c)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(out)
	return errors.Join(err, out.Close())
}
