package echo_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/udsecho/udsecho/internal/echo/echotest"
	"github.com/udsecho/udsecho/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.WaitInParallel()
	goleak.VerifyTestMain(m)
}

var (
	patience  = testkit.Patience
	unhurried = testkit.Unhurried
	message   = echotest.Message
)

type (
	config = echotest.Config
)

var (
	connecting = echotest.Connecting
	check      = testkit.Check
	gone       = testkit.WantGone
	wantWords  = testkit.WantError

	boundTo     = echotest.BoundTo
	dial        = echotest.Dial
	listen      = echotest.Listen
	listenOn    = echotest.ListenOn
	newJournal  = echotest.NewJournal
	random      = echotest.Random
	serve       = echotest.Serve
	serveSocket = echotest.ServeSocket
	unixTypes   = echotest.UnixTypes
	wantBack    = echotest.WantBack
	wantEcho    = echotest.WantEcho
)
