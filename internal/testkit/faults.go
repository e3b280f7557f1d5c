package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A FaultRow is a row of docs/faults.md, the matrix of faults: the result that
// a test has shown.
type FaultRow struct {
	ID      string // F1 to F50; the test's name holds it
	Done    string // the action of the test
	Count   int    // number of times; 0: it cannot be shown here, and the outcome states why
	Outcome string // the result; its numbers may differ from run to run
}

// ReportFault reports a row at the end of a test that has not failed. The test
// fails if the row in the document differs; its counts are those of [Stress].
// With FAULTS=write in the environment, as set by `make faults`, the test
// writes the row instead.
func ReportFault(t *testing.T, r FaultRow) {
	t.Helper()
	if t.Failed() {
		return
	}
	if !regexp.MustCompile(r.ID + `(\D|$)`).MatchString(t.Name()) {
		t.Fatalf("the name of a test that shows %s has to hold it", r.ID)
	}
	if err := report(r, t.Name(), os.Getenv("FAULTS") == "write"); err != nil {
		t.Error(err)
	}
}

// document returns the path of docs/faults.md of this source tree.
func document() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(here), "../../docs/faults.md")
}

func report(r FaultRow, test string, write bool) error {
	f, err := os.OpenFile(document(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Tests of several packages run at the same time.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	text, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "| "+r.ID+" |") })
	if i < 0 {
		return fmt.Errorf("%s has no row %s", f.Name(), r.ID)
	}
	cells := strings.Split(lines[i], " | ")
	if len(cells) != 6 {
		return fmt.Errorf("%s: row %s has %d cells, not 6", f.Name(), r.ID, len(cells))
	}
	count, shown := fmt.Sprint(r.Count), "`"+test+"` |"
	if r.Count == 0 {
		count, shown = "—", "not shown here |"
	}
	row := strings.Join([]string{cells[0], cells[1], r.Done, count, r.Outcome, shown}, " | ")
	if !write {
		if masked(row) != masked(lines[i]) {
			return fmt.Errorf("docs/faults.md and the test differ: run `make faults`\n document: %s\n test:     %s", lines[i], row)
		}
		return nil
	}
	lines[i] = row
	return os.WriteFile(f.Name(), []byte(strings.Join(lines, "\n")), 0o644)
}

var number = regexp.MustCompile(`[0-9][0-9,.]*`)

// masked returns a row without the numbers of its outcome, which belong to one
// run on one machine, and without its counts unless they are compared.
func masked(row string) string {
	cells := strings.Split(row, " | ")
	for i := Count(2, 4); i < 5; i++ {
		cells[i] = number.ReplaceAllString(cells[i], "#")
	}
	return strings.Join(cells, " | ")
}
