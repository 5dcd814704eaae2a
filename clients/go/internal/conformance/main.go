// Conformance is the Go library as clients/conformance drives it: COMMAND ADDRESS ARGUMENTS, lines of JSON out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/types/known/durationpb"

	jobwire "github.com/jobwire/jobwire/clients/go"
	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

type arguments struct {
	Kind        string   `json:"kind"`
	Payload     any      `json:"payload"`
	Queue       string   `json:"queue"`
	Queues      []string `json:"queues"`
	RequestID   string   `json:"request_id"`
	JobID       string   `json:"job_id"`
	Wait        *float64 `json:"wait"`
	Limit       *float64 `json:"limit"`
	AfterCursor string   `json:"after_cursor"`
	OnGap       string   `json:"on_gap"`
	Count       int      `json:"count"`
	Concurrency int      `json:"concurrency"`
	Compress    bool     `json:"compress"`
}

// options are those of the connections.
func (a arguments) options() []grpc.DialOption {
	if a.Compress {
		return []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name))}
	}
	return nil
}

type line map[string]any

var output sync.Mutex

func say(l line) {
	text, err := json.Marshal(l)
	if err != nil {
		log.Fatal(err)
	}
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(text))
}

func show(job *pb.Job) line {
	var output any
	if err := jobwire.Decode(job.GetOutput(), &output); err != nil {
		log.Fatal(err)
	}
	return line{"job_id": job.GetJobId(), "state": job.GetState().String(), "output": output}
}

func main() {
	command, address := os.Args[1], os.Args[2]
	var args arguments
	if err := json.Unmarshal([]byte(os.Args[3]), &args); err != nil {
		log.Fatal(err)
	}
	var err error
	if command == "work" {
		err = work(address, args)
	} else {
		err = ask(context.Background(), command, address, args)
	}
	var e *jobwire.Error
	if errors.As(err, &e) {
		code := strings.ToUpper(regexp.MustCompile("([a-z])([A-Z])").ReplaceAllString(e.Code.String(), "${1}_$2"))
		say(line{"error": code, "reason": e.Reason})
	} else if err != nil {
		log.Fatal(err)
	}
}

func ask(ctx context.Context, command, address string, args arguments) error {
	client, err := jobwire.Dial(address, args.options()...)
	if err != nil {
		return err
	}
	defer client.Close()
	payload, err := jobwire.Encode(args.Payload)
	if err != nil {
		return err
	}
	spec := &pb.JobSpec{Kind: args.Kind, Payload: payload, Queue: args.Queue}
	switch command {
	case "submit":
		reply, err := client.Submit(ctx, &pb.SubmitRequest{Spec: spec, RequestId: args.RequestID})
		if err != nil {
			return err
		}
		say(line{"job_id": reply.Job.JobId, "deduplicated": reply.Deduplicated, "cursor": reply.Cursor})
		return nil
	case "result":
		wait := jobwire.Forever
		if args.Wait != nil {
			wait = time.Duration(*args.Wait * float64(time.Second))
		}
		if args.Limit != nil {
			bounded, cancel := context.WithTimeout(ctx, time.Duration(*args.Limit*float64(time.Second)))
			defer cancel()
			ctx = bounded
		}
		reply, err := client.Result(ctx, args.JobID, wait)
		if err != nil {
			return err
		}
		result := show(reply.Job)
		result["done"] = reply.Done
		say(result)
		return nil
	case "watch":
		return watch(ctx, client, args)
	}
	var job *pb.Job
	switch command {
	case "run":
		job, err = client.Run(ctx, spec)
	case "get":
		job, err = client.Get(ctx, &pb.GetJobRequest{JobId: args.JobID})
	case "cancel":
		job, err = client.Cancel(ctx, &pb.CancelJobRequest{JobId: args.JobID})
	}
	if err == nil {
		say(show(job))
	}
	return err
}

// watch ends when Count outcomes came, or a gap.
func watch(ctx context.Context, client *jobwire.Client, args arguments) error {
	request := &pb.WatchResultsRequest{
		Filter:            &pb.JobFilter{Queues: args.Queues},
		HeartbeatInterval: durationpb.New(time.Second),
		OnGap:             pb.WatchResultsRequest_OnGap(pb.WatchResultsRequest_OnGap_value[args.OnGap]),
	}
	if args.AfterCursor != "" {
		request.Start = &pb.WatchResultsRequest_AfterCursor{AfterCursor: args.AfterCursor}
	}
	count := 0
	for message, err := range client.Watch(ctx, request) {
		if err != nil {
			return err
		}
		switch event := message.Event.(type) {
		case *pb.WatchResultsResponse_Finished:
			say(line{"finished": event.Finished.JobId})
			count++
		case *pb.WatchResultsResponse_Checkpoint:
			say(line{"checkpoint": message.Cursor})
		case *pb.WatchResultsResponse_Gap:
			say(line{"gap": event.Gap.Reason})
			return nil
		}
		if args.Count > 0 && count == args.Count {
			return nil
		}
	}
	return nil
}

type how struct {
	Code      string   `json:"code"`
	Retryable *bool    `json:"retryable"`
	After     *float64 `json:"after"`
	Until     *int32   `json:"until"`
}

func work(address string, args arguments) error {
	worker := jobwire.NewWorker(address, jobwire.WorkerOptions{
		Queues: args.Queues, Concurrency: args.Concurrency, DrainTimeout: 20 * time.Second,
		DialOptions: args.options()})
	jobwire.Handle(worker, "double", func(_ context.Context, _ *jobwire.Attempt, number int) (int, error) {
		return number * 2, nil
	})
	jobwire.Handle(worker, "large", func(_ context.Context, _ *jobwire.Attempt, size int) ([]byte, error) {
		return make([]byte, size), nil
	})
	jobwire.Handle(worker, "die", func(context.Context, *jobwire.Attempt, any) (any, error) {
		os.Exit(9)
		return nil, nil
	})
	jobwire.Handle(worker, "fail", fail)
	jobwire.Handle(worker, "hold", func(ctx context.Context, a *jobwire.Attempt, seconds []float64) (string, error) {
		say(line{"started": a.Job().JobId, "attempt": a.Job().Attempt})
		now := seconds[min(int(a.Job().Attempt), len(seconds))-1]
		select {
		case <-time.After(time.Duration(now * float64(time.Second))):
			return "held", nil
		case <-ctx.Done():
			say(line{"stopped": a.Job().JobId})
			return "", ctx.Err()
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	say(line{"working": true})
	if err := worker.Run(ctx); err != nil {
		return err
	}
	say(line{"drained": true})
	return nil
}

func fail(_ context.Context, a *jobwire.Attempt, how how) (any, error) {
	attempt := a.Job().Attempt
	if how.Until != nil && attempt >= *how.Until {
		var checkpoint any
		if _, err := a.Checkpoint(&checkpoint); err != nil {
			return nil, err
		}
		return line{"attempt": attempt, "checkpoint": checkpoint}, nil
	}
	if err := a.Save(0.5, "half", line{"from": attempt}); err != nil {
		return nil, err
	}
	if how.Code == "" {
		return nil, errors.New("boom")
	}
	failure := &jobwire.Failure{Code: how.Code, Message: "no", Details: how}
	failure.Permanent = how.Retryable != nil && !*how.Retryable
	if how.After != nil {
		failure.RetryAfter = time.Duration(*how.After * float64(time.Second))
	}
	return nil, failure
}
