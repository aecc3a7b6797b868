// Command reviews is the bookinfo service of book reviews. Version v1 shows no
// stars, v2 shows them in black and v3 in red; both ask the ratings service.
package main

import (
	"net/http"
	"os"

	"github.com/ambit-mesh/ambit/install/samples/bookinfo/app"
)

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

type reviews struct {
	ID      string   `json:"id"`
	Version string   `json:"version"`
	Reviews []review `json:"reviews"`
}

var colors = map[string]string{"v2": "black", "v3": "red"}

func main() {
	app.Main(map[string]http.HandlerFunc{"GET /reviews/{id}": serve})
}

func serve(w http.ResponseWriter, r *http.Request) {
	answer := reviews{ID: r.PathValue("id"), Version: app.Version(), Reviews: []review{
		{Reviewer: "Reviewer1", Text: "An extremely entertaining play."},
		{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining."},
	}}
	if color, starred := colors[app.Version()]; starred {
		addStars(r, &answer, color)
	}
	app.JSON(w, answer)
}

// addStars asks the ratings service; without it the reviews are still worth
// having.
func addStars(r *http.Request, answer *reviews, color string) {
	host := os.Getenv("RATINGS_HOST")
	if host == "" {
		host = "ratings:9080"
	}
	var known struct {
		Ratings map[string]int `json:"ratings"`
	}
	err := app.Call(r, "http://"+host+"/ratings/"+answer.ID, &known)
	for i := range answer.Reviews {
		if err != nil {
			answer.Reviews[i].Rating = &rating{Error: "ratings service is currently unavailable"}
			continue
		}
		answer.Reviews[i].Rating = &rating{Stars: known.Ratings[answer.Reviews[i].Reviewer], Color: color}
	}
}
