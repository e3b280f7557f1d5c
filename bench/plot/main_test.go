package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/udsecho/udsecho/internal/bench"
	"github.com/udsecho/udsecho/internal/testkit"
)

func TestDrawsEachMeasurementInEachFormat(t *testing.T) {
	dir := t.TempDir()
	measured := filepath.Join(dir, "bench.json")
	result := bench.Result{Base: 1}
	for i := range 4 { // 2 addresses × 2 numbers of connections
		row := &bench.Row{Name: []string{"a", "b"}[i%2], Size: 64, Connections: 1 + i/2, Window: 1, Ratio: 1, RatioMin: 0.9, RatioMax: 1.1}
		result.Rows = append(result.Rows, row)
	}
	testkit.Check(t, bench.WriteFile(measured, result.WriteJSON))
	for _, in := range [][]string{{measured, measured}, {"../../docs/scale.csv"}} {
		for ext, start := range map[string]string{".svg": "<?xml", ".png": "\x89PNG"} {
			out := filepath.Join(dir, "plot"+ext)
			testkit.Check(t, run(append(in, out)))
			content, err := os.ReadFile(out)
			if err != nil || !strings.HasPrefix(string(content), start) {
				t.Errorf("%s, %s: %v, %.20q", in, ext, err, content)
			}
			testkit.Check(t, os.Remove(out))
		}
	}
}

func TestNamesTheFileThatItCannotDraw(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.json")
	testkit.Check(t, os.WriteFile(empty, []byte("{}"), 0o600))
	for in, out := range map[string]string{empty: "x.png", "main.go": "x.png", "../../docs/scale.csv": "x.gif"} {
		name := in
		if strings.HasSuffix(out, ".gif") {
			name = out
		}
		if err := run([]string{in, out}); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s, %s: %v", in, out, err)
		}
	}
}
