package uds_test

import (
	"os/exec"
	"strings"
	"testing"
)

// Other programs import it: it brings nothing along but golang.org/x/sys.
func TestDependenciesAreTheStandardLibraryAndSys(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	check(t, err)
	for _, path := range strings.Fields(string(out)) {
		if path != "github.com/udsecho/udsecho/uds" && !strings.HasPrefix(path, "golang.org/x/sys/") {
			t.Errorf("it depends on %s", path)
		}
	}
}
