package testkit

import (
	"fmt"
	"os"
	"regexp"
	"testing"
)

func TestEveryRowIsShownOrStatesWhyNot(t *testing.T) {
	if os.Getenv("FAULTS") == "write" {
		t.Log("the rows are being written")
		return
	}
	text, err := os.ReadFile(document())
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 35; i++ {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| F%d \| [^|]+ \| [^|]+ \| ([0-9]+|—) \| [^|]+ \| (`+"`[^|]*F%d[^0-9|]*`"+`|not shown here) \|$`, i, i))
		if !row.Match(text) {
			t.Errorf("docs/faults.md: row F%d is not shown, and does not state why", i)
		}
	}
}
