package main

import (
	"testing"

	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/testkit"
)

func TestOptionsAreThoseOfTheDocument(t *testing.T) {
	testkit.ReportOptions(t, "uds", cli.Options("uds", &commands{}))
}
