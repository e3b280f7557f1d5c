//go:build noplot

package bench

import "errors"

// WritePlot is left out of this build: its fonts are as large as all the rest.
func (r *Result) WritePlot(string) error {
	return errors.New("this build does not plot: build without the tag noplot, or take the image of the service bench in bench/compose.yaml")
}
