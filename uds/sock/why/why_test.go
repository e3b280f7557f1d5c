//go:build linux

package why

import "testing"

func TestUserNamespacesThatMapAllUsers(t *testing.T) {
	t.Parallel()
	for uidMap, want := range map[string]bool{
		"         0          0 4294967295\n":     true,
		"0 0 1000\n1000 1001 4294966295\n":       true,
		"         0     100000      65536\n":     false,
		"0 1000 1\n1 100000 65536\n":             false,
		"     65534      10004          1\n":     false,
		"":                                       false,
		"what no kernel says\n\n1 2\n0 0 many\n": false,
	} {
		if got := parseMap(uidMap).all(); got != want {
			t.Errorf("%q maps all users: %t", uidMap, got)
		}
	}
}
