// Command ratings is the bookinfo service that knows how many stars reviewers
// give.
package main

import (
	"net/http"

	"github.com/ambit-mesh/ambit/install/samples/bookinfo/app"
)

type ratings struct {
	ID      string         `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

func main() {
	app.Main(map[string]http.HandlerFunc{
		"GET /ratings/{id}": func(w http.ResponseWriter, r *http.Request) {
			app.JSON(w, ratings{ID: r.PathValue("id"), Ratings: map[string]int{"Reviewer1": 5, "Reviewer2": 4}})
		},
	})
}
