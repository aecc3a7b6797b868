package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// apiServer is as much of a Kubernetes API server as the agent talks to: watches with
// initial events, merge patches of pods' status, and GET.
type apiServer struct {
	t      *testing.T
	server *httptest.Server

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]any // by path
	watchers map[chan<- map[string]any]string
	refuse   int // HTTP status of every answer; 0 = none is refused
	patches  []string
	watches  []string
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{t: t, objects: map[string]map[string]any{}, watchers: map[chan<- map[string]any]string{}}
	s.server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.server.CloseClientConnections()
		s.server.Close()
	})
	return s
}

func (s *apiServer) config() *rest.Config { return &rest.Config{Host: s.server.URL} }

// refuseWith makes every answer an error. Watches end when the server is away, and go on
// when permissions are.
func (s *apiServer) refuseWith(status int) {
	s.mu.Lock()
	s.refuse = status
	s.mu.Unlock()
	if status != http.StatusForbidden && status != http.StatusUnauthorized {
		s.server.CloseClientConnections()
	}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	refuse := s.refuse
	s.mu.Unlock()
	switch {
	case refuse != 0:
		s.fail(w, refuse, "refused")
	case r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case r.Method == http.MethodPatch:
		s.patch(w, r)
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		o := s.objects[r.URL.Path]
		if o == nil {
			s.fail(w, http.StatusNotFound, "no "+r.URL.Path)
			return
		}
		s.answer(w, o)
	}
}

func (s *apiServer) answer(w http.ResponseWriter, o any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(o); err != nil {
		s.t.Log(err)
	}
}

func (s *apiServer) fail(w http.ResponseWriter, code int, message string) {
	reason := map[int]string{
		http.StatusForbidden: "Forbidden", http.StatusUnauthorized: "Unauthorized",
		http.StatusNotFound: "NotFound", http.StatusConflict: "Conflict",
	}[code]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	s.answer(w, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message})
}

// watch sends what there is, a bookmark that says that this was all, and changes.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("sendInitialEvents") != "true" && q.Get("resourceVersion") == "" {
		s.fail(w, http.StatusBadRequest, "this server has watches with initial events only")
		return
	}
	events := make(chan map[string]any, 1000)
	s.mu.Lock()
	s.watches = append(s.watches, r.URL.Path+"?"+q.Get("fieldSelector"))
	kind := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if q.Get("sendInitialEvents") == "true" {
		for _, path := range slices.Sorted(maps.Keys(s.objects)) {
			if o := s.objects[path]; kindOf(path) == kind {
				events <- map[string]any{"type": "ADDED", "object": view(kind, o)}
			}
		}
		events <- map[string]any{"type": "BOOKMARK", "object": view(kind, map[string]any{"metadata": map[string]any{
			"resourceVersion": fmt.Sprint(s.version), "annotations": map[string]any{"k8s.io/initial-events-end": "true"},
		}})}
	}
	s.watchers[events] = kind
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, events)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			if json.NewEncoder(w).Encode(e) != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
		}
	}
}

// view is the object as it is sent: of namespaces only the metadata is asked for.
func view(kind string, o map[string]any) map[string]any {
	o = maps.Clone(o)
	switch kind {
	case "namespaces":
		o["apiVersion"], o["kind"] = "meta.k8s.io/v1", "PartialObjectMetadata"
	case "daemonsets":
		o["apiVersion"], o["kind"] = "apps/v1", "DaemonSet"
	default:
		o["apiVersion"], o["kind"] = "v1", "Pod"
	}
	return o
}

func kindOf(path string) string {
	switch {
	case strings.Contains(path, "/pods/"):
		return "pods"
	case strings.HasPrefix(path, "/api/v1/namespaces/"):
		return "namespaces"
	case strings.Contains(path, "/daemonsets/"):
		return "daemonsets"
	}
	return "others"
}

// set creates or replaces an object, nil deletes it.
func (s *apiServer) set(path string, o map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(path, o)
}

func (s *apiServer) put(path string, o map[string]any) {
	s.version++
	kind, old := "MODIFIED", s.objects[path]
	switch {
	case o == nil && old == nil:
		return
	case o == nil:
		kind, o = "DELETED", old
		delete(s.objects, path)
	case old == nil:
		kind = "ADDED"
	}
	meta := maps.Clone(o["metadata"].(map[string]any))
	meta["resourceVersion"] = fmt.Sprint(s.version)
	o = maps.Clone(o)
	o["metadata"] = meta
	if kind != "DELETED" {
		s.objects[path] = o
	}
	for events, watched := range s.watchers {
		if watched == kindOf(path) {
			events <- map[string]any{"type": kind, "object": view(watched, o)}
		}
	}
}

// patch merges annotations into an object, as the status subresource of a pod does.
func (s *apiServer) patch(w http.ResponseWriter, r *http.Request) {
	var patch struct {
		Metadata struct {
			UID         string             `json:"uid"`
			Annotations map[string]*string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.NewDecoder(r.Body).Decode(&patch); err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" {
		s.fail(w, http.StatusBadRequest, fmt.Sprint("no merge patch: ", err))
		return
	}
	path, isStatus := strings.CutSuffix(r.URL.Path, "/status")
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[path]
	if o == nil || !isStatus {
		s.fail(w, http.StatusNotFound, "no "+r.URL.Path)
		return
	}
	meta := maps.Clone(o["metadata"].(map[string]any))
	if patch.Metadata.UID != meta["uid"] {
		s.fail(w, http.StatusConflict, "the UID in the precondition is not the object's")
		return
	}
	annotations := map[string]any{}
	if old, ok := meta["annotations"].(map[string]any); ok {
		maps.Copy(annotations, old)
	}
	for k, v := range patch.Metadata.Annotations {
		s.patches = append(s.patches, path[strings.LastIndex(path, "/")+1:])
		if v == nil {
			delete(annotations, k)
			continue
		}
		annotations[k] = *v
	}
	meta["annotations"] = annotations
	o = maps.Clone(o)
	o["metadata"] = meta
	s.put(path, o)
	s.answer(w, view("namespaces", o))
}

func (s *apiServer) annotation(path, key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	meta, _ := s.objects[path]["metadata"].(map[string]any)
	annotations, _ := meta["annotations"].(map[string]any)
	value, _ := annotations[key].(string)
	return value
}

const (
	daemonSetPath = "/apis/apps/v1/namespaces/istio-system/daemonsets/ambit-cni"
	nodePath      = "/api/v1/nodes/n1"
)

var ownDaemonSet = types.NamespacedName{Namespace: "istio-system", Name: "ambit-cni"}

func namespacePath(name string) string { return "/api/v1/namespaces/" + name }

func podPath(name string) string { return "/api/v1/namespaces/shop/pods/" + name }

// namespace sets a namespace with the mode, which may be empty.
func (s *apiServer) namespace(name, mode string) {
	labels := map[string]any{"kubernetes.io/metadata.name": name}
	if mode != "" {
		labels["istio.io/dataplane-mode"] = mode
	}
	s.set(namespacePath(name), map[string]any{"metadata": map[string]any{"name": name, "labels": labels}})
}

// daemonSet sets the agent's, with the spec of its pods.
func (s *apiServer) daemonSet(meta, pod map[string]any) {
	meta["name"], meta["namespace"] = "ambit-cni", "istio-system"
	o := object("apps/v1", "DaemonSet", meta)
	o["spec"] = map[string]any{"template": map[string]any{"spec": pod}}
	s.set(daemonSetPath, o)
}

func object(version, kind string, meta map[string]any) map[string]any {
	return map[string]any{"apiVersion": version, "kind": kind, "metadata": meta}
}
