// Command reporter reports its start as Teleport's tbot does, for tests of a relay or bridge that serves an unmodified
// tbot.
//
// It reads tbot's four variables, posts with connect-go as tbot does, in the background and without a deadline, and
// waits for the response before it ends. The outcome of the report never changes its exit status. Without an address,
// tbot would report to Teleport; reporter reports nowhere and fails. `reporter load` reports as many tbots do at once,
// and `reporter serve` is a service that accepts every report and does nothing with it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"otel-tbot.test/reporter/prehog"
	"otel-tbot.test/reporter/prehog/prehogconnect"
)

const statusNoAddress = 3

func main() {
	if len(os.Args) > 1 && os.Args[1] == "load" {
		load(os.Args[2:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		fmt.Fprintln(os.Stderr, "reporter:", serve())
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == "start" {
		os.Args = append(os.Args[:1], os.Args[2:]...)
	}
	oneshot := flag.Bool("oneshot", false, "report a one-shot start instead of a daemon's")
	version := flag.String("version", "18.4.1", "version to report")
	joinType := flag.String("join-type", "token", "join method to report")
	other := flag.Int("destinations-other", 0, "destinations of none of the three services")
	database := flag.Int("destinations-database", 0, "destinations of the Database Service")
	kubernetes := flag.Int("destinations-kubernetes", 0, "destinations of the Kubernetes Service")
	application := flag.Int("destinations-application", 0, "destinations of the Application Service")
	distinctID := flag.String("distinct-id", "", "id of the start (default: a random UUID for each report)")
	runMode := flag.Int("run-mode", -1, "run mode as a number, which may be unknown")
	wait := flag.Duration("wait", 60*time.Second, "longest time to wait for the responses before the end")
	exitCode := flag.Int("exit-code", 0, "exit status")
	report := flag.Bool("report", true, "send a report")
	gzip := flag.Bool("gzip", false, "compress the request")
	json := flag.Bool("json", false, "send JSON")
	sized := flag.Bool("sized", false, "send the body with its length, not in chunks")
	repeat := flag.Int("repeat", 1, "number of reports, sent one after the other")
	untilStdinCloses := flag.Bool("until-stdin-closes", false, "run until standard input is closed")
	flag.Parse()

	if on, err := strconv.ParseBool(os.Getenv("TELEPORT_ANONYMOUS_TELEMETRY")); err != nil || !on {
		fmt.Println("off")
	} else if *report {
		address := os.Getenv("TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS")
		if address == "" {
			fmt.Fprintln(os.Stderr, "reporter: no address; tbot would report to Teleport now")
			os.Exit(statusNoAddress)
		}
		client := newClient(address, *gzip, *json, *sized)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range *repeat {
				start := &prehog.TbotStartEvent{
					RunMode:                 prehog.TbotStartEvent_RUN_MODE_DAEMON,
					Version:                 *version,
					JoinType:                *joinType,
					DestinationsOther:       int32(*other),
					DestinationsDatabase:    int32(*database),
					DestinationsKubernetes:  int32(*kubernetes),
					DestinationsApplication: int32(*application),
				}
				if *oneshot {
					start.RunMode = prehog.TbotStartEvent_RUN_MODE_ONE_SHOT
				}
				if *runMode >= 0 {
					start.RunMode = prehog.TbotStartEvent_RunMode(*runMode)
				}
				if helper := os.Getenv("_TBOT_TELEMETRY_HELPER"); helper != "" {
					start.Helper = helper
					start.HelperVersion = os.Getenv("_TBOT_TELEMETRY_HELPER_VERSION")
				}
				id := *distinctID
				if id == "" {
					id = newUUID()
				}
				submit(client, id, start)
			}
		}()
		select {
		case <-done:
		case <-time.After(*wait):
			fmt.Println("waited too long")
		}
	}
	if *untilStdinCloses {
		io.Copy(io.Discard, os.Stdin)
	}
	os.Exit(*exitCode)
}

// newClient builds the client as tbot does, with connect-go's defaults except for the given options.
func newClient(address string, gzip, json, sized bool) prehogconnect.TbotReportingServiceClient {
	var options []connect.ClientOption
	if gzip {
		options = append(options, connect.WithSendGzip())
	}
	if json {
		options = append(options, connect.WithProtoJSON())
	}
	client := &http.Client{Transport: chunked{http.DefaultTransport}}
	if sized {
		client.Transport = nil
	}
	return prehogconnect.NewTbotReportingServiceClient(client, address, options...)
}

// submit sends one report and prints its outcome as one line.
func submit(client prehogconnect.TbotReportingServiceClient, id string, start *prehog.TbotStartEvent) {
	request := connect.NewRequest(&prehog.SubmitTbotEventRequest{
		DistinctId: id,
		Timestamp:  timestamppb.Now(),
		Event:      &prehog.SubmitTbotEventRequest_Start{Start: start},
	})
	if _, err := client.SubmitTbotEvent(context.Background(), request); err != nil {
		message := err.Error()
		if connectError := new(connect.Error); errors.As(err, &connectError) {
			message = connectError.Message()
		}
		fmt.Printf("error %s %s %s\n", connect.CodeOf(err), id, message)
		return
	}
	fmt.Printf("ok %s\n", id)
}

// newUUID returns a random UUID (version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// chunked sends each body in chunks, as tbot's release of connect-go does; newer releases send the body's length.
type chunked struct{ http.RoundTripper }

func (transport chunked) RoundTrip(request *http.Request) (*http.Response, error) {
	clone := request.Clone(request.Context())
	clone.ContentLength = -1
	clone.TransferEncoding = []string{"chunked"}
	return transport.RoundTripper.RoundTrip(clone)
}
