package testkit

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A FaultRow is a row of docs/faults.csv, the figures of the fault matrix.
type FaultRow struct {
	ID      string // F1 to F50; the test's name holds it
	Done    string // the action of the test
	Count   int    // number of times; 0: it cannot be shown here, and the outcome states why
	Outcome string // the result; its numbers may differ from run to run
}

// ReportFault reports a row at the end of a test that has not failed. The test
// fails if the row in the file differs; its counts are those of [Stress]. With
// FAULTS=write in the environment, as set by `make faults`, it writes the row.
func ReportFault(t *testing.T, r FaultRow) {
	t.Helper()
	if t.Failed() {
		return
	}
	if !regexp.MustCompile(r.ID + `(\D|$)`).MatchString(t.Name()) {
		t.Fatalf("the name of a test that shows %s has to hold it", r.ID)
	}
	row := []string{r.ID, strconv.Itoa(r.Count), r.Done, r.Outcome, t.Name()}
	if err := report(row, os.Getenv("FAULTS") == "write"); err != nil {
		t.Error(err)
	}
}

// source returns the path of a file of this source tree.
func source(name string) string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(here), "../..", name)
}

func report(row []string, write bool) error {
	f, err := os.OpenFile(source("docs/faults.csv"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Tests of several packages run at the same time.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return err
	}
	i, found := slices.BinarySearchFunc(rows[1:], row[0], func(r []string, id string) int {
		return cmp.Or(len(r[0])-len(id), strings.Compare(r[0], id)) // F9 before F10
	})
	if i++; !found { // the first is the heading
		rows = slices.Insert(rows, i, make([]string, len(row)))
	}
	if !write {
		if !slices.Equal(masked(row), masked(rows[i])) {
			return fmt.Errorf("docs/faults.csv and the test differ: run `make faults`\n file: %q\n test: %q", rows[i], row)
		}
		return nil
	}
	rows[i] = row
	var text bytes.Buffer
	return errors.Join(csv.NewWriter(&text).WriteAll(rows), os.WriteFile(f.Name(), text.Bytes(), 0o644))
}

var number = regexp.MustCompile(`[0-9][0-9,.]*`)

// masked returns a row without the numbers of its outcome, which belong to one
// run on one machine, and without its counts unless they are compared.
func masked(row []string) []string {
	row = slices.Clone(row)
	for i := Count(1, 3); i < 4; i++ {
		if row[i] != "0" { // which as a count has a meaning of its own
			row[i] = number.ReplaceAllString(row[i], "#")
		}
	}
	return row
}
