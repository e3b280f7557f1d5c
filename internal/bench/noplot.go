//go:build noplot

package bench

import "errors"

// WritePlot is not part of this build: its fonts are as large as everything
// else together.
func (r *Result) WritePlot(string) error {
	return errors.New("this build does not plot; build without the tag noplot, or take the image of the service bench in bench/compose.yaml")
}
