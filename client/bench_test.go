package main_test

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
)

func TestBenchWritesJSONBesideTheTableOrInItsPlace(t *testing.T) {
	t.Parallel()
	d, l := listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	for _, file := range []string{"bench.json", "-"} {
		status, stdout, stderr := run(t, d, "", "bench", "--rounds", "1", "--duration", "10ms", "--warmup", "0s", "--json", file)
		if status != 0 || stderr != "" {
			t.Fatalf("--json %s: exit %d\n%s", file, status, stderr)
		}
		text := []byte(stdout)
		if file != "-" {
			if !strings.Contains(stdout, "│ stream:./uds_socket │") || strings.Contains(stdout, "{") {
				t.Errorf("no table: %q", stdout)
			}
			var err error
			text, err = os.ReadFile(d + "/" + file)
			check(t, err)
		}
		var result struct{ Rows []struct{ Address string } }
		if err := json.Unmarshal(text, &result); err != nil || len(result.Rows) != 1 || result.Rows[0].Address != "stream:./uds_socket" {
			t.Errorf("--json %s: %v, %q", file, err, text)
		}
	}
	wantFiles(t, d, "bench.json", "uds_socket")
}
