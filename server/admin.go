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
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"

	"github.com/udsecho/udsecho/internal/stats"
	"github.com/udsecho/udsecho/internal/transcript"
	"github.com/udsecho/udsecho/internal/transport"
	"github.com/udsecho/udsecho/uds"
)

// An admin is what --admin serves: how the server is doing, over HTTP.
type admin struct {
	addr     transport.Addr
	config   transport.ListenConfig
	wait     bool // for a server that is being taken over from to let the address go
	identity string
	stats    *stats.Server
	started  time.Time
	log      zerolog.Logger
}

// Bounds of what a client of the admin socket can take.
const (
	adminConnections = 16
	adminHeader      = 8 << 10
	adminPatience    = 10 * time.Second
)

// start serves until stop is called. An address that is in use by a server that
// is being taken over from is waited for, while the new one serves already.
func (a *admin) start(ctx context.Context) (stop func(), _ error) {
	ctx, cancel := context.WithCancel(ctx)
	server := &http.Server{
		Handler: a.handler(), MaxHeaderBytes: adminHeader,
		ReadTimeout: adminPatience, WriteTimeout: adminPatience, IdleTimeout: adminPatience,
		ErrorLog: stdlog.New(warner{a.log}, "", 0),
	}
	l, err := a.listen()
	if err != nil && (!a.wait || !errors.Is(err, uds.ErrInUse)) {
		cancel()
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if l == nil {
			a.log.Info().Err(err).Msg(transcript.Escape(err.Error()) + ": waiting for it")
			if l, err = a.await(ctx); err != nil {
				if ctx.Err() == nil {
					a.log.Warn().Err(err).Msg(transcript.Escape(err.Error()))
				}
				return
			}
		}
		renewed := make(chan struct{})
		go func() { defer close(renewed); l.renewUntil(ctx) }()
		if err := server.Serve(netutil.LimitListener(l, adminConnections)); !errors.Is(err, http.ErrServerClosed) {
			a.log.Warn().Err(err).Msg(transcript.Escape(fmt.Sprintf("the admin socket is gone: %v", err)))
		}
		cancel()
		<-renewed
	}()
	return func() {
		cancel()
		_ = server.Close()
		<-ended
	}, nil
}

// await listens once the server that is taken over from has let the address go.
func (a *admin) await(ctx context.Context) (*adminListener, error) {
	again := backoff.NewExponentialBackOff()
	again.MaxInterval = time.Second
	return backoff.Retry(ctx, func() (*adminListener, error) {
		l, err := a.listen()
		if err != nil && !errors.Is(err, uds.ErrInUse) {
			err = backoff.Permanent(err)
		}
		return l, err
	}, backoff.WithBackOff(again), backoff.WithMaxElapsedTime(0))
}

// A warner writes what package http has to say as events.
type warner struct{ log zerolog.Logger }

func (w warner) Write(line []byte) (int, error) {
	w.log.Warn().Msg("admin: " + transcript.Escape(strings.TrimSuffix(string(line), "\n")))
	return len(line), nil
}

func (a *admin) listen() (*adminListener, error) {
	socket, err := a.config.Listen(a.addr)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	l, err := socket.Unix().Listener()
	if err != nil {
		_ = socket.Close()
		return nil, fmt.Errorf("admin: %w", err)
	}
	return &adminListener{log: a.log, socket: socket, listener: l}, nil
}

// An adminListener makes its socket again where somebody has removed the file,
// as package echo does its own. Where something else has the path by now it is
// closed, and the echo goes on.
type adminListener struct {
	log zerolog.Logger

	mu       sync.Mutex // guards what follows, and the socket
	socket   *transport.Socket
	listener net.Listener // of the socket
	closed   error        // why it is
}

// renewPeriod is how often it looks for its file.
const renewPeriod = time.Second

func (l *adminListener) renewUntil(ctx context.Context) {
	tick := time.NewTicker(renewPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.renew()
		}
	}
}

func (l *adminListener) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed != nil || !l.socket.Lost() {
		return
	}
	path := transcript.Escape(l.socket.Addr.Path)
	socket, err := l.socket.Renew()
	switch {
	case errors.Is(err, uds.ErrInUse), errors.Is(err, uds.ErrNotSocket):
		l.closed = err
		_ = l.listener.Close()
		return
	case err != nil:
		l.log.Warn().Err(err).Msgf("%s was removed, and cannot be made again now: %s", path, transcript.Escape(err.Error()))
		return
	}
	old := l.listener
	l.socket = socket
	if l.listener, err = socket.Unix().Listener(); err != nil {
		l.closed, l.listener = err, old
		_ = socket.Close()
	}
	_ = old.Close()
	if err == nil {
		l.log.Warn().Str("listen", transcript.Escape(socket.Addr.String())).Msgf("%s was removed: listening again", path)
	}
}

// Accept waits at the old socket until that is closed, and then at the new one.
func (l *adminListener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		at := l.listener
		l.mu.Unlock()
		conn, err := at.Accept()
		if err == nil {
			return conn, nil
		}
		l.mu.Lock()
		closed, renewed := l.closed, l.listener != at
		l.mu.Unlock()
		switch {
		case closed != nil:
			return nil, closed
		case !renewed:
			return nil, err
		}
	}
}

// Close removes the socket's files, too.
func (l *adminListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed != nil {
		return nil
	}
	l.closed = net.ErrClosed
	return l.listener.Close()
}

// Addr makes it a net.Listener.
func (l *adminListener) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.listener.Addr()
}

func (a *admin) handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(a, collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status", a.status)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "/status   JSON\n/metrics  for Prometheus")
	})
	return mux
}

func (a *admin) status(w http.ResponseWriter, _ *http.Request) {
	refused := map[string]uint64{}
	for cause, n := range a.stats.Refused() {
		refused[cause] = n
	}
	build, _ := debug.ReadBuildInfo()
	w.Header().Set("Content-Type", "application/json")
	pretty := json.NewEncoder(w)
	pretty.SetIndent("", "  ")
	_ = pretty.Encode(map[string]any{
		"identity":        a.identity,
		"connections":     a.stats.Connections.Load(),
		"accepted":        a.stats.Accepted.Load(),
		"messages":        a.stats.Messages.Load(),
		"bytes":           a.stats.Bytes.Load(),
		"replies_waiting": a.stats.Waiting.Load(),
		"replies_dropped": a.stats.Dropped.Load(),
		"refused":         refused,
		"uptime_seconds":  int(time.Since(a.started).Seconds()),
		"build":           map[string]string{"version": build.Main.Version, "go": build.GoVersion},
	})
}

var (
	descConnections = prometheus.NewDesc("udsecho_connections", "Connections that are open.", nil, nil)
	descAccepted    = prometheus.NewDesc("udsecho_connections_accepted_total", "Connections that were served.", nil, nil)
	descMessages    = prometheus.NewDesc("udsecho_messages_received_total", "Messages received; of streams, chunks.", nil, nil)
	descBytes       = prometheus.NewDesc("udsecho_bytes_received_total", "Bytes received.", nil, nil)
	descWaiting     = prometheus.NewDesc("udsecho_replies_waiting", "Replies that datagram clients have not taken.", nil, nil)
	descDropped     = prometheus.NewDesc("udsecho_replies_dropped_total", "Replies that datagram clients did not take in time.", nil, nil)
	descRefused     = prometheus.NewDesc("udsecho_refused_total", "Clients and messages turned away.", []string{"cause"}, nil)
)

// Describe and Collect make an admin a prometheus.Collector.
func (a *admin) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(a, to) }

func (a *admin) Collect(to chan<- prometheus.Metric) {
	for desc, n := range map[*prometheus.Desc]float64{
		descConnections: float64(a.stats.Connections.Load()),
		descWaiting:     float64(a.stats.Waiting.Load()),
	} {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, n)
	}
	for desc, n := range map[*prometheus.Desc]uint64{
		descAccepted: a.stats.Accepted.Load(),
		descMessages: a.stats.Messages.Load(),
		descBytes:    a.stats.Bytes.Load(),
		descDropped:  a.stats.Dropped.Load(),
	} {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n))
	}
	for cause, n := range a.stats.Refused() {
		to <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(n), cause)
	}
}
