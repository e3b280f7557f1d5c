package uds_test

import (
	"os/exec"
	"strings"
	"testing"
)

// Other programs import this package, so golang.org/x/sys must stay its only
// dependency, in go.mod too.
func TestDependenciesAreTheStandardLibraryAndSys(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "list", "-m", "all")
	cmd.Env = append(cmd.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	out, err := cmd.Output()
	check(t, err)
	for _, module := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if module != "github.com/udsecho/udsecho/uds" && !strings.HasPrefix(module, "golang.org/x/sys ") {
			t.Errorf("it depends on %s", module)
		}
	}
}
