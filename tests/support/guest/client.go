// A static client with Go's own TLS: it waits until it is probed.
package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"time"
)

func main() {
	time.Sleep(6 * time.Second)
	for range make([]int, 3) {
		connection, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[1], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprintf(connection, "GET /go HTTP/1.1\r\nHost: guest\r\n\r\n")
		connection.Read(make([]byte, 4096))
		connection.Close()
	}
	time.Sleep(2 * time.Second)
}
