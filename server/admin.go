//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/internal/cli"
	"github.com/udsecho/udsecho/internal/logtext"
	"github.com/udsecho/udsecho/internal/server"
	"github.com/udsecho/udsecho/uds"
	"github.com/udsecho/udsecho/uds/sock"
)

// An admin serves --admin: the server's health and counters, over HTTP.
type admin struct {
	addr     addr.Addr
	wait     bool // wait until the server that this one replaces has released the address
	identity string
	stats    *server.Stats
	started  time.Time
	log      zerolog.Logger
	dropped  func() uint64 // lines of the log that its reader did not take
}

// Limits for a client of the admin socket.
const (
	adminConnections = 16
	adminHeader      = 8 << 10
	adminPatience    = 10 * time.Second
)

// start serves until stop is called. If the server that this one replaces
// still has the address, start waits for it in the background, while the new
// server serves already.
func (a *admin) start(ctx context.Context) (stop func(), _ error) {
	l, err := a.listen(ctx)
	if err != nil && (!a.wait || !errors.Is(err, uds.ErrInUse)) {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if l == nil {
			a.log.Info().Err(err).Msg(logtext.Escape(err.Error()) + ": waiting for it")
			l, err = a.await(ctx)
		}
		if err == nil {
			err = a.serve(ctx, l)
		}
		if err != nil && ctx.Err() == nil {
			a.log.Warn().Err(err).Msg(logtext.Escape(fmt.Sprintf("the admin socket is gone: %v", err)))
		}
	}()
	return func() { cancel(); <-ended }, nil
}

func (a *admin) listen(ctx context.Context) (net.Listener, error) {
	l, err := uds.ListenConfig{Mode: 0o600, Renew: true, Renewed: a.renewed, Control: refuseRights}.Listen(ctx, "unix", a.addr.Path)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return l, nil
}

func refuseRights(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { sock.RefuseRights(int(fd)) })
}

// await listens once the server that this one replaces has released the
// address.
func (a *admin) await(ctx context.Context) (net.Listener, error) {
	return backoff.Retry(ctx, func() (net.Listener, error) {
		l, err := a.listen(ctx)
		if err != nil && !errors.Is(err, uds.ErrInUse) {
			err = backoff.Permanent(err)
		}
		return l, err
	}, backoff.WithBackOff(cli.NewBackOff()), backoff.WithMaxElapsedTime(0))
}

// serve ends when ctx ends, or when the socket file was removed and something
// else is at the path.
func (a *admin) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: a.handler(), MaxHeaderBytes: adminHeader,
		ReadTimeout: adminPatience, WriteTimeout: adminPatience,
		ErrorLog: stdlog.New(warner{a.log}, "", 0),
	}
	server.SetKeepAlivesEnabled(false) // a connection that is kept would take the place of another for ever
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	defer func() { _ = server.Close() }()
	return server.Serve(netutil.LimitListener(l, adminConnections))
}

// renewed logs that the socket file was removed, and whether it is there again.
func (a *admin) renewed(err error) {
	path := logtext.Escape(a.addr.Path)
	if err != nil {
		a.log.Warn().Err(err).Msgf("%s was removed, and cannot be recreated now: %s", path, logtext.Escape(err.Error()))
		return
	}
	a.log.Warn().Str("listen", logtext.Escape(a.addr.String())).Msgf("%s was removed: listening again", path)
}

// A warner writes the errors of package http as events.
type warner struct{ log zerolog.Logger }

func (w warner) Write(line []byte) (int, error) {
	w.log.Warn().Msg("admin: " + logtext.Escape(strings.TrimSuffix(string(line), "\n")))
	return len(line), nil
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status", a.status)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "/status   JSON\n/metrics  for Prometheus")
	})
	return mux
}

func (a *admin) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, n *atomic.Int64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "udsecho_" + name, Help: help},
			func() float64 { return float64(n.Load()) }))
	}
	counter := func(name, help string, labels prometheus.Labels, count func() uint64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "udsecho_" + name, Help: help, ConstLabels: labels},
			func() float64 { return float64(count()) }))
	}
	gauge("connections", "Connections that are open.", &a.stats.Connections)
	gauge("replies_waiting", "Replies that datagram clients have not taken.", &a.stats.Waiting)
	counter("connections_accepted_total", "Connections that were served.", nil, a.stats.Accepted.Load)
	counter("messages_received_total", "Messages received; of streams, chunks.", nil, a.stats.Messages.Load)
	counter("bytes_received_total", "Bytes received.", nil, a.stats.Bytes.Load)
	counter("replies_dropped_total", "Replies that datagram clients did not take in time.", nil, a.stats.Dropped.Load)
	counter("log_lines_dropped_total", "Lines of the log that its reader did not take.", nil, a.dropped)
	for cause := range server.Causes {
		counter("refused_total", "Clients rejected or disconnected, and messages dropped.", prometheus.Labels{"cause": cause.String()},
			func() uint64 { return a.stats.Refused(cause) })
	}
	return registry
}

func (a *admin) status(w http.ResponseWriter, _ *http.Request) {
	refused := map[string]uint64{}
	for cause := range server.Causes {
		refused[cause.String()] = a.stats.Refused(cause)
	}
	w.Header().Set("Content-Type", "application/json")
	pretty := json.NewEncoder(w)
	pretty.SetIndent("", "  ")
	_ = pretty.Encode(map[string]any{
		"identity":          a.identity,
		"connections":       a.stats.Connections.Load(),
		"accepted":          a.stats.Accepted.Load(),
		"messages":          a.stats.Messages.Load(),
		"bytes":             a.stats.Bytes.Load(),
		"replies_waiting":   a.stats.Waiting.Load(),
		"replies_dropped":   a.stats.Dropped.Load(),
		"log_lines_dropped": a.dropped(),
		"refused":           refused,
		"uptime_seconds":    int(time.Since(a.started).Seconds()),
		"build":             map[string]string{"version": cli.Version, "go": runtime.Version()},
	})
}
