package main_test

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestIdentityIsAFieldOfEveryEvent(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--log-format", "json", "--identity", "node-7\x1b", "--admin", "./admin")
	if status, _, stderr := run(t, d, "", "client", "hello"); status != 0 {
		t.Fatal(stderr)
	}
	server.Err.Await(t, 2, "waiting for a connection")
	if got := statusOf(t, d+"/admin").Identity; got != "node-7\x1b" {
		t.Errorf("the status contains %q", got)
	}
	messages := ""
	for line := range strings.Lines(server.Err.String()) {
		var event struct{ Identity, Message string }
		check(t, json.Unmarshal([]byte(line), &event))
		if event.Identity != `node-7\x1b` {
			t.Errorf("identity %q in %s", event.Identity, line)
		}
		messages += event.Message + "\n"
	}
	wantWords(t, messages, "starting up on ", "received 'hello'")
	server.Stop(t)
}
