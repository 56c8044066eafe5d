package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"otel-tbot.test/reporter/prehog"
	"otel-tbot.test/reporter/prehog/prehogconnect"
)

// totals is the summary that `reporter load` prints at its end, as one line of JSON on standard output.
type totals struct {
	OK         int            `json:"ok"`
	Errors     map[string]int `json:"errors"`
	Seconds    float64        `json:"seconds"`
	MedianMS   float64        `json:"median_ms"`
	Percent99  float64        `json:"p99_ms"`
	MaximumMS  float64        `json:"max_ms"`
	PerSeconds float64        `json:"per_second"`
}

// load sends many reports over a fixed number of connections, as that many tbots with one address would. With -each it
// writes one line for each report to that file: "ok ID" or "error CODE ID".
func load(arguments []string) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	address := flags.String("address", "", "address of the bridge")
	count := flags.Int("count", 1000, "number of reports")
	connections := flags.Int("connections", 64, "number of connections, and of reports in flight")
	over := flags.Duration("over", 0, "time over which the reports are spread (default: send the next one after each response)")
	newConnections := flags.Bool("new-connections", false, "open a connection for each report, as each start of a tbot does")
	each := flags.String("each", "", "file that gets one line for each report")
	flags.Parse(arguments)

	transport := &http.Transport{
		MaxConnsPerHost: *connections, MaxIdleConnsPerHost: *connections, DisableKeepAlives: *newConnections,
	}
	client := prehogconnect.NewTbotReportingServiceClient(
		&http.Client{Transport: chunked{transport}}, *address,
	)
	var lines *bufio.Writer
	if *each != "" {
		file, err := os.Create(*each)
		if err != nil {
			fmt.Fprintln(os.Stderr, "reporter:", err)
			os.Exit(1)
		}
		defer file.Close()
		lines = bufio.NewWriter(file)
		defer lines.Flush()
	}
	var next atomic.Int64
	var lock sync.Mutex
	all := totals{Errors: map[string]int{}}
	taken := make([]float64, 0, *count)
	began := time.Now()
	var group sync.WaitGroup
	for range *connections {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				number := next.Add(1)
				if number > int64(*count) {
					return
				}
				if *over > 0 {
					time.Sleep(time.Until(began.Add(*over * time.Duration(number) / time.Duration(*count))))
				}
				id := newUUID()
				sent := time.Now()
				_, err := client.SubmitTbotEvent(context.Background(), connect.NewRequest(&prehog.SubmitTbotEventRequest{
					DistinctId: id,
					Event: &prehog.SubmitTbotEventRequest_Start{Start: &prehog.TbotStartEvent{
						RunMode:           prehog.TbotStartEvent_RUN_MODE_DAEMON,
						Version:           "18.4.1",
						JoinType:          "kubernetes",
						DestinationsOther: 1,
					}},
				}))
				milliseconds := float64(time.Since(sent).Microseconds()) / 1000
				lock.Lock()
				taken = append(taken, milliseconds)
				line := "ok " + id
				if err == nil {
					all.OK++
				} else {
					all.Errors[connect.CodeOf(err).String()]++
					line = fmt.Sprintf("error %s %s", connect.CodeOf(err), id)
				}
				if lines != nil {
					fmt.Fprintln(lines, line)
				}
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	all.Seconds = time.Since(began).Seconds()
	all.PerSeconds = float64(len(taken)) / all.Seconds
	sort.Float64s(taken)
	if n := len(taken); n > 0 {
		all.MedianMS, all.Percent99, all.MaximumMS = taken[n/2], taken[n*99/100], taken[n-1]
	}
	json.NewEncoder(os.Stdout).Encode(all)
}
