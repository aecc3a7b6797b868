package filter

import (
	"net"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/codec"
)

// Redirect sends the client elsewhere. Empty parts stay as the request has them.
type Redirect struct {
	Status     int
	Scheme     string
	Host       string
	Port       uint32
	Path       string       // whole path, with a query if it has one
	Rewrite    *PathRewrite // of the path, when Path is empty
	StripQuery bool
}

// Location returns where to. matched is the part of the path that the rule
// matched.
func (d *Redirect) Location(r *codec.Request, matched string) string {
	scheme := r.Scheme
	if forwarded, ok := codec.Get(r.Fields, "x-forwarded-proto"); ok && (forwarded == "http" || forwarded == "https") {
		scheme = forwarded
	}
	host, port := splitPort(r.Authority)
	if d.Scheme != "" && d.Scheme != scheme {
		scheme, port = d.Scheme, ""
	}
	if d.Host != "" {
		host = d.Host
	}
	if d.Port != 0 {
		port = strconv.FormatUint(uint64(d.Port), 10)
	}
	if scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		port = ""
	}
	if port != "" {
		host += ":" + port
	}
	return scheme + "://" + host + d.path(r, matched)
}

func (d *Redirect) path(r *codec.Request, matched string) string {
	path, query := r.PathOnly(), r.Query()
	switch {
	case d.Path != "":
		if strings.Contains(d.Path, "?") {
			return d.Path
		}
		path = d.Path
	case d.Rewrite != nil:
		path = d.Rewrite.apply(path, matched)
	}
	if query != "" && !d.StripQuery {
		path += "?" + query
	}
	return path
}

func splitPort(authority string) (host, port string) {
	if host, port, err := net.SplitHostPort(authority); err == nil {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return host, port
	}
	return authority, ""
}
