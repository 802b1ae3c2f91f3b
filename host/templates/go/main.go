// Started for every request: the handler answers it, and the program ends.
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/http/cgi"
	"os"
)

func main() {
	http.HandleFunc("/", hello)
	if err := cgi.Serve(nil); err != nil {
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, r *http.Request) {
	target := os.Getenv("TARGET")
	if target == "" {
		target = "world"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "hello %s, from {{name}}\n", target)
	// Standard error is the function's log.
	log.Printf("%s %s", r.Method, r.URL.Path)
}
