// Package app is what the services of the bookinfo sample have in common: an
// HTTP server on port 9080 that answers probes, says in every response which
// pod and version it comes from, and calls other services with the headers
// that a mesh needs to see a request through.
package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Headers of a response that say where it comes from, and whom the service
// takes for the caller: the address of its connection.
const (
	HeaderVersion = "X-Version"
	HeaderPod     = "X-Pod"
	HeaderPeer    = "X-Peer"
)

// forwarded are the request headers that are passed on, so that routes by user
// and traces work for calls behind calls.
var forwarded = []string{"End-User", "Authorization", "Traceparent", "Tracestate", "Baggage", "X-Request-Id", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled"}

// Version returns this instance's version, from the environment.
func Version() string { return envOr("SERVICE_VERSION", "v1") }

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// Main serves the routes until SIGTERM or SIGINT, then finishes the requests
// that are running. It does not return.
func Main(routes map[string]http.HandlerFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := serve(ctx, routes)
	stop()
	if err != nil {
		slog.Error("server ended", "error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(ctx context.Context, routes map[string]http.HandlerFunc) error {
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	for pattern, handler := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(HeaderVersion, Version())
			w.Header().Set(HeaderPod, pod)
			if peer, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
				w.Header().Set(HeaderPeer, peer)
			}
			handler(w, r)
		})
	}
	server := &http.Server{Addr: ":" + envOr("PORT", "9080"), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(grace), ignoreClosed(<-ended))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// JSON writes a value as the response.
func JSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		slog.Warn("response not written", "error", err)
	}
}

var client = &http.Client{Timeout: 10 * time.Second}

// Call gets url on behalf of a request and decodes the JSON that it answers.
// A status other than 200 is an error.
func Call(r *http.Request, url string, into any) error {
	request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	for _, name := range forwarded {
		if values := r.Header.Values(name); len(values) > 0 {
			request.Header[name] = values
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200))
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, text)
	}
	return json.NewDecoder(response.Body).Decode(into)
}
