package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestDocumentHasTheNumbersOfTheFile(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/scale.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []measurement
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../../docs/scale.md")
	if err != nil {
		t.Fatal(err)
	}
	row := func(title string, cell func(m measurement) string) {
		t.Helper()
		cells := []string{title}
		for _, m := range all {
			cells = append(cells, cell(m))
		}
		if line := "| " + strings.Join(cells, " | ") + " |"; !strings.Contains(string(document), line) {
			t.Errorf("docs/scale.md does not have the row\n%s", line)
		}
	}
	row("nodes", func(m measurement) string { return fmt.Sprint(m.Nodes) })
	row("tasks that the manager places", func(m measurement) string { return fmt.Sprint(m.Tasks) })
	row("images brought to the nodes (archives, not compressed)", func(m measurement) string { return fmt.Sprintf("%.1f MB", float64(m.Pulled)/1e6) })
	row("engines start, all at once", func(m measurement) string { return fmt.Sprintf("%.1f s", m.Engines) })
	row("they join", func(m measurement) string { return fmt.Sprintf("%.1f s", m.Join) })
	row("deployed, and 10 echoes made on every node", func(m measurement) string { return fmt.Sprintf("%.1f s", m.Deploy) })
	row("rolling update of the servers, one after the other", func(m measurement) string { return fmt.Sprintf("%.1f s", m.Update) })
	row("memory of the engine, manager (RSS of dockerd and containerd)", func(m measurement) string { return fmt.Sprintf("%.0f MB", float64(m.Manager)/1e6) })
	row("an echo of 64 bytes on each node, p50", func(m measurement) string { return micro(m.P50) })
	row("p99", func(m measurement) string { return micro(m.P99) })
	row("bytes a second through the sockets, all nodes pumping", func(m measurement) string { return fmt.Sprintf("%.1f GB/s", m.Socket/1e9) })
	row("bytes a second between the nodes meanwhile", func(m measurement) string { return fmt.Sprintf("%.1f kB/s", m.Loaded/1e3) })
	row("bytes a second between the nodes without that", func(m measurement) string { return fmt.Sprintf("%.1f kB/s", m.Idle/1e3) })

	of := model{most: all[len(all)-1], least: all[0]}
	modelled := func(title string, format string, cell func(f forecast) []float64) {
		t.Helper()
		var cells []any
		for i, nodes := range []float64{10, 1000, 100_000} {
			cells = append(cells, cell(of.of(nodes))[i])
		}
		if line := "| " + title + " | " + fmt.Sprintf(format, cells...) + " |"; !strings.Contains(string(document), line) {
			t.Errorf("docs/scale.md does not have the row\n%s", line)
		}
	}
	modelled("images pulled, the first time", "%.0f MB | %.1f GB | %.1f TB",
		func(f forecast) []float64 { return []float64{f.pulled / 1e6, f.pulled / 1e9, f.pulled / 1e12} })
	modelled("between nodes and managers", "%.0f kB/s | %.1f MB/s | %.0f MB/s",
		func(f forecast) []float64 { return []float64{f.control / 1e3, f.control / 1e6, f.control / 1e6} })
	modelled("rolling update, one node at a time", "%.0f s | %.0f min | %.1f days",
		func(f forecast) []float64 { return []float64{f.updates, f.updates / 60, f.updates / 86400} })
}

func TestPlotIsDrawnFromTheFile(t *testing.T) {
	t.Parallel()
	var all []measurement
	for nodes := 1; nodes <= 2; nodes++ {
		all = append(all, measurement{Nodes: nodes, Tasks: 2 * nodes, Update: float64(nodes), Images: 1e6, Idle: float64(nodes),
			P50: []int64{1e4}, P99: []int64{1e5}})
	}
	path := t.TempDir() + "/scale.png"
	if err := plotScale(all, path); err != nil {
		t.Fatal(err)
	}
	if picture, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(picture), "\x89PNG") {
		t.Errorf("not a picture: %v", err)
	}
	if err := plotScale(all[:1], path); err == nil {
		t.Error("one point makes no line")
	}
}
