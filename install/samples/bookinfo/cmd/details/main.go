// Command details is the bookinfo service that knows facts of a book.
package main

import (
	"net/http"

	"github.com/ambit-mesh/ambit/install/samples/bookinfo/app"
)

type details struct {
	ID        string `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
}

func main() {
	app.Main(map[string]http.HandlerFunc{
		"GET /details/{id}": func(w http.ResponseWriter, r *http.Request) {
			app.JSON(w, details{
				ID: r.PathValue("id"), Author: "William Shakespeare", Year: 1595,
				Type: "paperback", Pages: 200, Publisher: "PublisherA", Language: "English",
			})
		},
	})
}
