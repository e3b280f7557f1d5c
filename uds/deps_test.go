package uds_test

import (
	"os/exec"
	"strings"
	"testing"
)

// Other programs import this package, so golang.org/x/sys must stay its only
// dependency.
func TestDependenciesAreTheStandardLibraryAndSys(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	check(t, err)
	for _, path := range strings.Fields(string(out)) {
		if !strings.HasPrefix(path, "github.com/udsecho/udsecho/uds") && !strings.HasPrefix(path, "golang.org/x/sys/") {
			t.Errorf("it depends on %s", path)
		}
	}
}
