// Command productpage is the bookinfo service that people see: a page put
// together from details and reviews.
package main

import (
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"os"

	"github.com/ambit-mesh/ambit/install/samples/bookinfo/app"
)

const title = "The Comedy of Errors"

// part is what another service answered, or why it did not.
type part struct {
	Status string          `json:"status"`
	Error  string          `json:"error,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

type product struct {
	ID      string `json:"id"`
	Title   string `json:"title"`
	Details part   `json:"details"`
	Reviews part   `json:"reviews"`
}

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html><head><title>{{.Title}}</title></head><body>
<h1>{{.Title}}</h1>
<h2>Book details</h2>
{{if .Details.Error}}<p>Sorry, product details are currently unavailable for this book.</p>{{else}}<pre>{{printf "%s" .Details.Body}}</pre>{{end}}
<h2>Book reviews</h2>
{{if .Reviews.Error}}<p>Sorry, product reviews are currently unavailable for this book.</p>{{else}}<pre>{{printf "%s" .Reviews.Body}}</pre>{{end}}
</body></html>
`))

func main() {
	app.Main(map[string]http.HandlerFunc{
		"GET /productpage": func(w http.ResponseWriter, r *http.Request) {
			if err := page.Execute(w, gather(r, "0")); err != nil {
				slog.Warn("page not written", "error", err)
			}
		},
		"GET /api/v1/products/{id}": func(w http.ResponseWriter, r *http.Request) {
			app.JSON(w, gather(r, r.PathValue("id")))
		},
	})
}

func gather(r *http.Request, id string) product {
	return product{
		ID: id, Title: title,
		Details: get(r, host("DETAILS_HOST", "details:9080"), "/details/"+id),
		Reviews: get(r, host("REVIEWS_HOST", "reviews:9080"), "/reviews/"+id),
	}
}

func get(r *http.Request, host, path string) part {
	var body json.RawMessage
	if err := app.Call(r, "http://"+host+path, &body); err != nil {
		return part{Status: "error", Error: err.Error()}
	}
	return part{Status: "ok", Body: body}
}

func host(variable, otherwise string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	return otherwise
}
