// Command echo is the application of the lab's tests: a server that says who
// asked whom, and the clients for it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("echo: serve, get, lookup, exit or env")
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		serve(args[0])
	case "get":
		count := 1
		if len(args) > 1 {
			count, _ = strconv.Atoi(args[1])
		}
		for range count {
			fmt.Println(get(args[0]))
		}
	case "lookup":
		addresses, err := net.DefaultResolver.LookupHost(context.Background(), args[0])
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(strings.Join(addresses, " "))
	case "env":
		_ = json.NewEncoder(os.Stdout).Encode(os.Environ())
	case "exit":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		code, _ := strconv.Atoi(args[0])
		os.Exit(code)
	case "hang":
		ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		<-ended.Done()
		stop()
	}
}

// serve answers "<host name> <address of the caller>". GET /ready answers 503
// until someone asks for /be-ready; /die ends the process with code 3.
func serve(address string) {
	host, _ := os.Hostname()
	var ready atomic.Bool
	ready.Store(os.Getenv("START_UNREADY") == "")
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		peer, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s %s %s", host, peer, os.Getenv("VERSION"))
	})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		log.Println("probed by", r.RemoteAddr)
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/be-ready", func(http.ResponseWriter, *http.Request) { ready.Store(true) })
	mux.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { os.Exit(3) })
	mux.HandleFunc("/self", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, get(r.URL.Query().Get("url"))) })
	server := &http.Server{Addr: address, Handler: mux}
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-ended.Done()
		_ = server.Shutdown(context.Background())
	}()
	log.Println(server.ListenAndServe())
}

func get(url string) string {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return "error: " + err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(body)
}
