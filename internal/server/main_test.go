package server_test

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
	patience = testkit.Patience
	message  = echotest.Message
)

type (
	config  = echotest.Config
	journal = echotest.Journal
	running = echotest.Running
)

var (
	connecting = echotest.Connecting
	beside     = testkit.Beside
	check      = testkit.Check
	gone       = testkit.WantGone
	wantWords  = testkit.WantError

	correspond  = echotest.Correspond
	dial        = echotest.Dial
	listen      = echotest.Listen
	listenOn    = echotest.ListenOn
	newJournal  = echotest.NewJournal
	queueLength = echotest.QueueLength
	serve       = echotest.Serve
	serveSocket = echotest.ServeSocket
	unixTypes   = echotest.UnixTypes
	wantBack    = echotest.WantBack
	wantEcho    = echotest.WantEcho
)
