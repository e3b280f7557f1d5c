package testkit_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestNothingOfTheTestsIsInThePrograms(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "../../server", "../../client", "../../cmd/uds")
	out, err := cmd.Output()
	testkit.Check(t, err)
	for pkg := range strings.Lines(string(out)) {
		if pkg == "testing\n" || strings.HasSuffix(pkg, "/testkit\n") {
			t.Errorf("the programs contain %s", pkg)
		}
	}
}
