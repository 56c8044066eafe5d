package main

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"otel-tbot.test/reporter/prehog"
	"otel-tbot.test/reporter/prehog/prehogconnect"
)

// accepting accepts every report and does nothing with it.
type accepting struct{}

func (accepting) SubmitTbotEvent(
	context.Context, *connect.Request[prehog.SubmitTbotEventRequest],
) (*connect.Response[prehog.SubmitTbotEventResponse], error) {
	return connect.NewResponse(&prehog.SubmitTbotEventResponse{}), nil
}

// serve accepts every report on a free loopback port until it is killed. It shows the least that a bridge in Go costs.
func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	mux := http.NewServeMux()
	mux.Handle(prehogconnect.NewTbotReportingServiceHandler(accepting{}))
	return http.Serve(listener, mux)
}
