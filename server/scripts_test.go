package main_test

import (
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestScripts(t *testing.T) { testkit.Scripts(t, "testdata/script") }
