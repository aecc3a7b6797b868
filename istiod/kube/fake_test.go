package kube

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// object is one in the fake API server.
type object = map[string]any

// apiServer keeps objects by path and speaks as much of the API as this package
// does. A server-side apply replaces the object.
type apiServer struct {
	t   *testing.T
	url string

	mu      sync.Mutex
	objects map[string]object
	version int
	calls   []string
	// refuse answers a request in the server's place unless it returns nil.
	refuse func(method, path string) *metav1.Status
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	a := &apiServer{t: t, objects: map[string]object{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

func (a *apiServer) config() *rest.Config {
	return &rest.Config{Host: a.url, QPS: -1, ContentType: "application/json"}
}

// direct reaches the server without a network, for a bubble of synctest. It loses
// the answers to requests that hang names: they take effect all the same.
type direct struct {
	*apiServer

	hang func(r *http.Request) bool
}

func (d direct) config() *rest.Config {
	return &rest.Config{Host: "http://fake", QPS: -1, ContentType: "application/json", Transport: d}
}

// RoundTrip implements http.RoundTripper.
func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	answer := httptest.NewRecorder()
	d.ServeHTTP(answer, r)
	if d.hang(r) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return answer.Result(), nil
}

func (a *apiServer) set(path string, o object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.store(path, o)
}

func (a *apiServer) get(path string) object {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.objects[path]
}

func (a *apiServer) called() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

func (a *apiServer) refuseWith(f func(method, path string) *metav1.Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = f
}

func meta(o object) object {
	m, _ := o["metadata"].(map[string]any)
	if m == nil {
		m = object{}
		o["metadata"] = m
	}
	return m
}

func (a *apiServer) store(path string, o object) {
	a.version++
	meta(o)["resourceVersion"] = strconv.Itoa(a.version)
	a.objects[path] = o
}

// ServeHTTP implements http.Handler.
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, r.Method+" "+r.URL.Path)
	if a.refuse != nil {
		if status := a.refuse(r.Method, r.URL.Path); status != nil {
			a.answer(w, int(status.Code), status)
			return
		}
	}
	body := object{}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Error(err)
	}
	if len(data) > 0 && json.Unmarshal(data, &body) != nil {
		a.t.Errorf("%s %s: the body is not JSON", r.Method, r.URL.Path)
	}
	there, exists := a.objects[r.URL.Path]
	switch r.Method {
	case http.MethodPost:
		name, _ := meta(body)["name"].(string)
		path := r.URL.Path + "/" + name
		if _, exists := a.objects[path]; exists {
			a.fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
			return
		}
		a.store(path, body)
		a.answer(w, http.StatusCreated, body)
		return
	case http.MethodPatch:
		if uid := meta(body)["uid"]; uid != nil && (!exists || uid != meta(there)["uid"]) {
			a.fail(w, http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		a.store(r.URL.Path, body)
		a.answer(w, http.StatusOK, body)
		return
	case http.MethodGet:
		if r.URL.Query().Has("labelSelector") {
			a.list(w, r.URL.Path)
			return
		}
	}
	if !exists {
		a.fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	switch r.Method {
	case http.MethodGet:
		a.answer(w, http.StatusOK, there)
	case http.MethodDelete:
		delete(a.objects, r.URL.Path)
		a.answer(w, http.StatusOK, there)
	case http.MethodPut:
		if meta(body)["resourceVersion"] != meta(there)["resourceVersion"] {
			a.fail(w, http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		a.store(r.URL.Path, body)
		a.answer(w, http.StatusOK, body)
	default:
		a.t.Errorf("the fake API server knows no %s", r.Method)
	}
}

func (a *apiServer) list(w http.ResponseWriter, path string) {
	items := []object{}
	for at, o := range a.objects {
		if strings.HasPrefix(at, path+"/") {
			items = append(items, o)
		}
	}
	a.answer(w, http.StatusOK, object{"apiVersion": "v1", "kind": "List", "metadata": object{}, "items": items})
}

func (a *apiServer) fail(w http.ResponseWriter, code int32, reason metav1.StatusReason) {
	a.answer(w, int(code), refusal(code, reason))
}

func refusal(code int32, reason metav1.StatusReason) *metav1.Status {
	return &metav1.Status{
		APIVersion: "v1", Kind: "Status", Status: metav1.StatusFailure, Code: code, Reason: reason, Message: string(reason),
	}
}

func (a *apiServer) answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		a.t.Error(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
