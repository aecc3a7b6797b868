package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed manifests/coredns.yaml
var corednsManifest []byte

// api is the API server as the host's administrator sees it: as much of it as
// a start needs. Client-go would make the tool ten times as big.
type api struct {
	url    string
	client *http.Client
}

// newAPI reads the credentials from a kubeconfig that this package has written.
func newAPI(kubeconfig string) (*api, error) {
	content, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(content, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	if len(config.Clusters) != 1 || len(config.Users) != 1 {
		return nil, fmt.Errorf("%s: %d clusters, %d users; want one of each", kubeconfig, len(config.Clusters), len(config.Users))
	}
	pair, err := tls.X509KeyPair(config.Users[0].User.Cert, config.Users[0].User.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	return &api{url: config.Clusters[0].Cluster.Server, client: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, nil
}

func (a *api) close() { a.client.CloseIdleConnections() }

func (a *api) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(content))
	}
	return content, nil
}

// get reads an object, or a list.
func (a *api) get(ctx context.Context, path string, into any) error {
	content, err := a.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

func (a *api) ready(ctx context.Context) error {
	_, err := a.do(ctx, http.MethodGet, "/readyz", "", nil)
	return err
}

// apply creates or changes the objects of a manifest, by server-side apply.
func (a *api) apply(ctx context.Context, manifest []byte) error {
	for document := range bytes.SplitSeq(manifest, []byte("\n---\n")) {
		path, err := objectPath(document)
		if err != nil {
			return err
		}
		if _, err := a.do(ctx, http.MethodPatch, path+"?fieldManager=ambit-cluster&force=true", "application/apply-patch+yaml", document); err != nil {
			return err
		}
	}
	return nil
}

// objectPath is where the API server has the object.
func objectPath(document []byte) (string, error) {
	var object struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &object); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	prefix := "/apis/"
	if !strings.Contains(object.APIVersion, "/") {
		prefix = "/api/"
	}
	prefix += object.APIVersion
	if object.Metadata.Namespace != "" {
		prefix += "/namespaces/" + object.Metadata.Namespace
	}
	return prefix + "/" + strings.ToLower(object.Kind) + "s/" + object.Metadata.Name, nil
}

// condition of a Kubernetes object.
type objectCondition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

type nodeObject struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		Conditions []objectCondition `json:"conditions"`
		NodeInfo   struct {
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

type podObject struct {
	Metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase             string            `json:"phase"`
		Conditions        []objectCondition `json:"conditions"`
		ContainerStatuses []struct {
			State struct {
				Waiting struct {
					Reason  string `json:"reason"`
					Message string `json:"message"`
				} `json:"waiting"`
			} `json:"state"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

// conditionOf finds a condition; the zero one if there is none.
func conditionOf(all []objectCondition, kind string) objectCondition {
	for _, c := range all {
		if c.Type == kind {
			return c
		}
	}
	return objectCondition{}
}

func (a *api) nodes(ctx context.Context) ([]nodeObject, error) {
	var list struct {
		Items []nodeObject `json:"items"`
	}
	err := a.get(ctx, "/api/v1/nodes", &list)
	return list.Items, err
}

func (a *api) pods(ctx context.Context) ([]podObject, error) {
	var list struct {
		Items []podObject `json:"items"`
	}
	err := a.get(ctx, "/api/v1/pods", &list)
	return list.Items, err
}
