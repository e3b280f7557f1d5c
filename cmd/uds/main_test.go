package main_test

import (
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, ".", "../../client", "../../server") }

var (
	check     = testkit.Check
	dir       = testkit.Dir
	wantWords = testkit.WantWords
)

func TestScripts(t *testing.T) { testkit.Scripts(t, "testdata/script") }
