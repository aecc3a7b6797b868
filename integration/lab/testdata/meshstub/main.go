// Command meshstub stands for the mesh's own programs in the lab's tests: under
// the name of each it does what the lab can observe of it, and nothing more.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

const runDir = "/var/run/ambit-cni"

func main() {
	switch name := filepath.Base(os.Args[0]); {
	case os.Getenv("CNI_COMMAND") != "":
		plugin()
	case name == "istiod":
		istiod()
	case name == "ztunnel":
		ztunnel()
	case name == "ambit-cni":
		agent()
	}
}

// plugin refuses until its node's agent runs, and refuses a pod's first ADD.
func plugin() {
	refuse := func(format string, args ...any) {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.0.0", "code": 11, "msg": fmt.Sprintf(format, args...)})
		os.Exit(1)
	}
	if _, err := os.Stat(runDir + "/agent"); err != nil {
		refuse("no agent: %v", err)
	}
	if _, err := os.Stat(os.Getenv("CNI_NETNS")); err != nil {
		refuse("no namespace: %v", err)
	}
	var config bytes.Buffer
	_, _ = config.ReadFrom(os.Stdin)
	file := filepath.Join(runDir, os.Getenv("CNI_COMMAND")+"-"+os.Getenv("CNI_CONTAINERID"))
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) && os.Getenv("CNI_COMMAND") == "ADD" {
		_ = os.WriteFile(file, nil, 0o600)
		refuse("not the first time")
	}
	_ = os.WriteFile(file, []byte(os.Getenv("CNI_ARGS")+"\n"+config.String()), 0o600)
	fmt.Println(`{"cniVersion":"1.0.0"}`)
}

// istiod publishes a root certificate, as the real one does, and listens.
func istiod() {
	flags := map[string]string{}
	for _, arg := range os.Args[1:] {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		flags[name] = value
	}
	for _, dir := range []string{flags["config-dir"], flags["jwks-file"]} {
		if _, err := os.Stat(dir); err != nil {
			log.Fatal(err)
		}
	}
	root := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"istio-ca-root-cert","namespace":"istio-system"},"data":{"root-cert.pem":"ROOT"}}`
	file := filepath.Join(flags["state-dir"], "objects", "configmap_istio-system_istio-ca-root-cert.yaml")
	if err := os.WriteFile(file+".new", []byte(root), 0o600); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(flags["listen-address"], "15012"))
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		_ = conn.Close()
	}
}

// ztunnel is ready if it has its token and root, and istiod is reached by name.
func ztunnel() {
	http.HandleFunc("/healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		for _, file := range []string{"/var/run/secrets/tokens/istio-token", "/var/run/secrets/istio/root-cert.pem"} {
			if _, err := os.Stat(file); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			}
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(os.Getenv("XDS_ADDRESS"), "https://"))
		if err != nil {
			log.Println(err)
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_ = conn.Close()
	})
	_ = os.WriteFile("/var/run/ztunnel/started-on", []byte(os.Getenv("NODE_NAME")+" "+os.Getenv("SECRET_TTL")+" "+os.Getenv("INSTANCE_IP")), 0o600)
	log.Fatal(http.ListenAndServe(":15021", nil))
}

func agent() {
	if err := os.WriteFile(runDir+"/agent", []byte(strings.Join(os.Args[1:], " ")), 0o600); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	log.Fatal(http.ListenAndServe(":8000", nil))
}
