package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestBenchEndsInTableAndPlotOfTheSameNumbers(t *testing.T) {
	testkit.StressOnly(t) // it measures three times, in containers
	// A copy, because the results are written beside the Makefile.
	dir := t.TempDir()
	tree := exec.CommandContext(t.Context(), "sh", "-c", `cd .. && git ls-files -z | xargs -0 cp --parents -t "$0" && cp .env "$0" 2>/dev/null; true`, dir)
	if out, err := tree.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out := makeTarget(t, dir, "bench", "UDS_SIZE=64", "UDS_CONNECTIONS=2", "UDS_ROUNDS=1", "UDS_DURATION=50ms")
	text, err := os.ReadFile(filepath.Join(dir, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		Rows []struct {
			Name   string
			Rate   float64 `json:"messages_per_second"`
			Errors int
		}
	}
	if err := json.Unmarshal(text, &result); err != nil {
		t.Fatal(err)
	}
	if len(result.Rows) != 5 {
		t.Errorf("%d rows in bench.json, want one for each of 5 addresses", len(result.Rows))
	}
	_, table, _ := strings.Cut(out, "--- round trips")
	for _, row := range result.Rows {
		if row.Errors != 0 || !strings.Contains(table, row.Name) || !strings.Contains(table, strconv.FormatFloat(row.Rate, 'f', 0, 64)) {
			t.Errorf("%+v is not in the table:\n%s", row, table)
		}
	}
	if plot, err := os.ReadFile(filepath.Join(dir, "bench.png")); err != nil || !bytes.HasPrefix(plot, []byte("\x89PNG")) {
		t.Errorf("bench.png: %v", err)
	}
}
