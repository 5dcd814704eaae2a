// Drives one peer over loopback and prints one JSON line: its throughput end to end, or its latency.
//
//	peers NAME throughput|latency --address HOST:PORT [--seconds S] [--connections C] [--workers W] [--batch B]
//	      [--prefetch P] [--outstanding O]
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"time"
)

// What every driver is told. Each uses what its peer knows.
type options struct {
	address     string
	seconds     float64
	connections int
	workers     int
	batch       int
	prefetch    int
	outstanding int
}

// One peer, connected, with its workers running.
type session interface {
	// submit hands over n jobs on one of the connections, and returns when all of them are acknowledged.
	submit(connection, n int) error
}

// done is called for each job whose end was seen: by the submitter where the peer can tell it, else by the worker.
type opener func(o options, done func(n int)) (session, error)

var peers = map[string]opener{
	"aiohttp":             openAiohttp,
	"asynq":               openAsynq,
	"beanstalkd":          openBeanstalkd,
	"faktory":             openFaktory,
	"gearmand":            openGearmanForeground,
	"gearmand-background": openGearmanBackground,
	"river":               openRiver,
}

// The job of every peer: 100 bytes.
var payload = strings.Repeat("0123456789", 10)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal("usage: peers NAME throughput|latency [flags]")
	}
	name, scenario := os.Args[1], os.Args[2]
	var o options
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	flags.StringVar(&o.address, "address", "", "host:port, or a database URL")
	flags.Float64Var(&o.seconds, "seconds", 5, "how long to submit")
	flags.IntVar(&o.connections, "connections", 1, "submitting connections")
	flags.IntVar(&o.workers, "workers", 1, "working connections, or slots for jobs")
	flags.IntVar(&o.batch, "batch", 1, "jobs handed over at once")
	flags.IntVar(&o.prefetch, "prefetch", 1, "jobs a working connection takes at once")
	flags.IntVar(&o.outstanding, "outstanding", 1000, "jobs submitted and not seen to end, at most")
	_ = flags.Parse(os.Args[3:])

	open, known := peers[name]
	if !known {
		log.Fatalf("no peer %q", name)
	}
	figures, err := measure(open, scenario, o)
	if err != nil {
		log.Fatalf("%s %s: %v", name, scenario, err)
	}
	line, err := json.Marshal(figures)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func measure(open opener, scenario string, o options) (map[string]any, error) {
	length := time.Duration(o.seconds * float64(time.Second))
	switch scenario {
	case "throughput":
		loop := newLoop(o.outstanding)
		peer, err := open(o, loop.done)
		if err != nil {
			return nil, err
		}
		return loop.run(peer, o, length)
	case "latency":
		ended := make(chan struct{}, 1)
		o.connections, o.batch = 1, 1
		peer, err := open(o, func(int) { ended <- struct{}{} })
		if err != nil {
			return nil, err
		}
		return oneByOne(peer, ended, length)
	}
	return nil, fmt.Errorf("no scenario %q", scenario)
}

// A percentile by nearest rank, in microseconds.
func percentile(sorted []time.Duration, share float64) float64 {
	rank := min(int(share*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[rank].Nanoseconds()) / 1000
}

func sorted(samples []time.Duration) []time.Duration {
	slices.Sort(samples)
	return samples
}
