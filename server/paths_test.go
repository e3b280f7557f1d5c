package main_test

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/udsecho/udsecho/internal/testkit"
	"golang.org/x/sys/unix"
)

// inodes returns the inodes of paths.
func inodes(t *testing.T, paths ...string) string {
	t.Helper()
	var all []string
	for _, path := range paths {
		var st unix.Stat_t
		check(t, unix.Lstat(path, &st))
		all = append(all, fmt.Sprint(st.Ino))
	}
	return strings.Join(all, " ")
}

func TestF3SecondServerFailsAndTheFirstContinuesToServe(t *testing.T) {
	t.Parallel()
	const attempts = 10
	second := testkit.Plain(t, "server") // its speed is reported
	var took []time.Duration
	for _, kind := range kinds {
		d := dir(t)
		first := serve(t, d, "--listen", kind+":./s")
		before := inodes(t, d+"/s", d+"/.s.lock")
		for range attempts {
			// It listens on all of its addresses or on none.
			began := time.Now()
			status, _, stderr := run(t, d, "", second, "--listen", "free", "--listen", kind+":./s")
			took = append(took, time.Since(began))
			if status != 1 || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit status %d, error %q", status, stderr)
			}
			wantWords(t, stderr, "in use", ".s.lock", "stop it first or choose another path")
			wantFiles(t, d, ".s.lock", "s")
			if after := inodes(t, d+"/s", d+"/.s.lock"); after != before {
				t.Errorf("the first one's files are %s, were %s", after, before)
			}
			clientEchoes(t, d, "--connect", kind+":./s")
		}
		first.Stop(t)
	}
	slices.Sort(took)
	median := took[len(took)/2]
	testkit.ReportFault(t, testkit.FaultRow{
		ID:      "F3",
		Done:    "a second server started on the path of one that serves, for each type",
		Count:   len(took),
		Outcome: fmt.Sprintf("exit 1 after %d ms; the first one's files are the same inodes, and it serves", median.Milliseconds()),
	})
}

func TestF2PathSurvivesTheOldServersEnd(t *testing.T) {
	t.Parallel()
	overlaps := testkit.Count(10, 100)
	d := dir(t)
	old := serve(t, d)
	for i := range overlaps {
		holding := start(t, d, "client", "-") // it keeps the old server from ending
		_, err := io.WriteString(holding.In, message)
		check(t, err)
		holding.Out.Await(t, 1, message)
		byHand := i%2 == 1
		if byHand {
			old.Pause(t) // otherwise it would listen again
			check(t, os.Remove(d+"/uds_socket"))
			check(t, os.Remove(d+"/.uds_socket.lock"))
		} else {
			old.Signal(t, syscall.SIGTERM)
			awaitEmpty(t, d)
		}
		successor := serve(t, d)
		before := inodes(t, d+"/uds_socket", d+"/.uds_socket.lock")
		if byHand {
			old.Signal(t, syscall.SIGTERM)
			old.Signal(t, syscall.SIGCONT)
		}
		check(t, holding.In.Close())
		holding.WantStatus(t, 0)
		// It may have noticed a file removed by hand before the signal.
		if status := old.Status(t); status != 0 && !byHand {
			t.Errorf("overlap %d: exit status %d, error %q", i, status, &old.Err)
		}
		if after := inodes(t, d+"/uds_socket", d+"/.uds_socket.lock"); after != before {
			t.Fatalf("overlap %d: the successor's files are %s, were %s", i, after, before)
		}
		clientEchoes(t, d)
		old = successor
	}
	old.Stop(t)
	testkit.ReportFault(t, testkit.FaultRow{
		ID: "F2",
		Done: "a server ends after its successor has bound the path: told to stop while a client holds it, " +
			"and every other time paused while its files are removed by hand",
		Count:   overlaps,
		Outcome: "each time the successor's socket and lock are the same inodes, and it serves",
	})
}
