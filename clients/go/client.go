// Package jobwire submits jobs to a jobwire server, watches their outcomes, and runs them.
//
// Requests and replies are the messages of the contract, in package jobwirev1.
package jobwire

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"iter"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

// Forever is a wait without an end of its own: the context bounds it.
const Forever time.Duration = math.MaxInt64

const (
	// The deadline of one try of a call, beyond the wait it asks for.
	callTimeout = 15 * time.Second
	// One step of a long poll. Servers may answer sooner, with done = false.
	poll               = 40 * time.Second
	firstPause         = 100 * time.Millisecond
	longestPause       = 5 * time.Second
	firstStreamPause   = 250 * time.Millisecond
	longestStreamPause = 15 * time.Second
	// A server that wants to be left alone for longer is not asked again.
	longestRetryDelay = 30 * time.Second
	// How long waits and watches go on trying without a single reply before they pass the error on.
	patience = 10 * time.Minute
	// Tries of one call in all, and how many of them may take until their deadline.
	maxTries     = 8
	maxLateTries = 3
)

// Client is a client of one server. It may be used by many goroutines. Its methods fail with an *Error.
type Client struct {
	calls *grpc.ClientConn
	// Streams have a connection of their own: once the streams of a connection are used up, further calls on it hang.
	streams *grpc.ClientConn
}

// Dial makes a client of the server at http://host:port or host:port; without a port, 50051. It connects when it is used.
// The options come after this package's own, so they may set TLS, for one.
func Dial(address string, options ...grpc.DialOption) (*Client, error) {
	calls, err := dial(address, options)
	if err != nil {
		return nil, err
	}
	streams, err := dial(address, options)
	if err != nil {
		return nil, errors.Join(err, calls.Close())
	}
	return &Client{calls: calls, streams: streams}, nil
}

// Close ends the connections, and what still runs on them.
func (c *Client) Close() error { return errors.Join(c.calls.Close(), c.streams.Close()) }

func (c *Client) rpc() pb.JobServiceClient { return pb.NewJobServiceClient(c.calls) }

// Submit stores a job. Durable when this returns.
//
// It fills in RequestId if that is empty, so that a repeat after a lost reply does not make a second job. To repeat after an
// error yourself, set it yourself: the job may be there. With Wait, the reply comes when the job has ended or the time is
// up, whichever is first.
func (c *Client) Submit(ctx context.Context, request *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	deadline := callTimeout + min(max(request.GetWait().AsDuration(), 0), poll)
	return call(ctx, deadline, true, withRequestID(request), c.rpc().Submit)
}

// BatchSubmit stores up to 1000 jobs, all or none. It fills in each RequestId that is empty.
func (c *Client) BatchSubmit(ctx context.Context, request *pb.BatchSubmitRequest) (*pb.BatchSubmitResponse, error) {
	filled := &pb.BatchSubmitRequest{}
	for _, item := range request.GetRequests() {
		filled.Requests = append(filled.Requests, withRequestID(item))
	}
	return call(ctx, callTimeout, true, filled, c.rpc().BatchSubmit)
}

// Run submits a job and waits until it has ended, well or not: see its State, Output and Error. After an error the job may
// be there: Submit with a RequestId of your own, and Result, can be repeated.
func (c *Client) Run(ctx context.Context, spec *pb.JobSpec) (*pb.Job, error) {
	reply, err := c.Submit(ctx, &pb.SubmitRequest{Spec: spec, Wait: durationpb.New(poll)})
	// A server that has little room left answers without the output.
	if err != nil || reply.GetDone() && !reply.GetJob().GetOutput().GetOmitted() {
		return reply.GetJob(), err
	}
	result, err := c.Result(ctx, reply.GetJob().GetJobId(), Forever)
	return result.GetJob(), err
}

// Result is the outcome of a job: it waits until that has ended, or for as long as wait says.
//
// A job that has not ended by then is a reply with Done false, no error. It outlives restarts of the server, up to 10
// minutes without a single reply.
func (c *Client) Result(ctx context.Context, jobID string, wait time.Duration) (*pb.GetResultResponse, error) {
	began := time.Now()
	replied := began
	for {
		asked := time.Now()
		left := min(max(wait-asked.Sub(began), 0), poll)
		request := &pb.GetResultRequest{JobId: jobID}
		if left > 0 {
			request.Wait = durationpb.New(left)
		}
		reply, err := call(ctx, left+callTimeout, true, request, c.rpc().GetResult)
		over := time.Since(began) >= wait
		if err != nil {
			e := toError(ctx, err)
			if !e.repeatable(true) || over || time.Since(replied) > patience {
				return nil, e
			}
			if sleep(ctx, min(e.delay(), left)) != nil {
				return nil, e
			}
			continue
		}
		replied = time.Now()
		if reply.Done || over {
			return reply, nil
		}
		// A server that does not hold replies says when to ask again.
		if reply.RetryAfter != nil && replied.Sub(asked) < left/2 {
			if err := sleep(ctx, min(reply.RetryAfter.AsDuration(), left)); err != nil {
				return nil, toError(ctx, err)
			}
		}
	}
}

// Get is one job, as much of it as View asks for.
func (c *Client) Get(ctx context.Context, request *pb.GetJobRequest) (*pb.Job, error) {
	reply, err := call(ctx, callTimeout, true, request, c.rpc().GetJob)
	return reply.GetJob(), err
}

// List is the jobs that match, page by page, from PageToken on to the end. An error ends it.
func (c *Client) List(ctx context.Context, request *pb.ListJobsRequest) iter.Seq2[*pb.ListJobsResponse, error] {
	return func(yield func(*pb.ListJobsResponse, error) bool) {
		request := cloned(request)
		for {
			page, err := call(ctx, callTimeout, true, request, c.rpc().ListJobs)
			if !yield(page, err) || err != nil || page.NextPageToken == "" {
				return
			}
			request.PageToken = page.NextPageToken
		}
	}
}

// Cancel cancels a job: after this no new attempt starts. A job that has ended is returned as it is.
func (c *Client) Cancel(ctx context.Context, request *pb.CancelJobRequest) (*pb.Job, error) {
	reply, err := call(ctx, callTimeout, true, request, c.rpc().CancelJob)
	return reply.GetJob(), err
}

// Retry starts a new run of a job that failed, was cancelled or expired, or ends its back-off.
//
// Without an Etag it is not repeated after a lost reply, because that could start two runs.
func (c *Client) Retry(ctx context.Context, request *pb.RetryJobRequest) (*pb.Job, error) {
	reply, err := call(ctx, callTimeout, request.GetEtag() != "", request, c.rpc().RetryJob)
	return reply.GetJob(), err
}

// Delete removes a job that has ended, and its outcome.
func (c *Client) Delete(ctx context.Context, request *pb.DeleteJobRequest) error {
	first := true
	_, err := call(ctx, callTimeout, true, cloned(request),
		func(ctx context.Context, request *pb.DeleteJobRequest, options ...grpc.CallOption) (*pb.DeleteJobResponse, error) {
			// The first try may have removed the job although its reply was lost.
			request.AllowMissing = request.AllowMissing || !first
			first = false
			return c.rpc().DeleteJob(ctx, request, options...)
		})
	return err
}

// Info is the server's version, limits and optional features.
func (c *Client) Info(ctx context.Context) (*pb.GetServerInfoResponse, error) {
	return call(ctx, callTimeout, true, &pb.GetServerInfoRequest{}, c.rpc().GetServerInfo)
}

// Watch is the outcomes of many jobs, as they come.
//
// It goes on by itself, from its cursor, when the connection breaks, the server restarts or falls silent for three
// heartbeats; nothing is left out and no outcome comes twice. Checkpoints and gaps are passed on like everything else. It
// ends after an error that another try would only repeat (such as CURSOR_EXPIRED), after 10 minutes without a single
// message, with the context, and under UntilAllDone when the server says that every job has ended. Jobs that are removed
// after their outcome has come count as ended. Without a Start it begins with its first checkpoint.
func (c *Client) Watch(
	ctx context.Context, request *pb.WatchResultsRequest,
) iter.Seq2[*pb.WatchResultsResponse, error] {
	return func(yield func(*pb.WatchResultsResponse, error) bool) {
		resume := newResume(request)
		backoff := newPauses(firstStreamPause, longestStreamPause)
		began := time.Now()
		var failingSince time.Time
		for {
			stopped := false
			err := c.stream(ctx, resume.request(time.Since(began)), resume.maxSilence(), func(message *pb.WatchResultsResponse) bool {
				failingSince = time.Time{}
				backoff.reset()
				stopped = resume.note(message) && !yield(message, nil)
				return !stopped
			})
			if stopped || err == nil && resume.ends() {
				return
			}
			e := &Error{Code: codes.Unavailable, Message: "the server ended the stream early"}
			if err != nil {
				e = toError(ctx, err)
			}
			if resume.drop(e) {
				if resume.fulfilled() {
					return
				}
				continue
			}
			if failingSince.IsZero() {
				failingSince = time.Now()
			}
			if ctx.Err() != nil || !e.resumable() || time.Since(failingSince) > patience ||
				sleep(ctx, backoff.next(e.delay())) != nil {
				yield(nil, toError(ctx, e))
				return
			}
		}
	}
}

// stream is one stream of a watch, until its end or until take returns false.
func (c *Client) stream(
	ctx context.Context, request *pb.WatchResultsRequest, silence time.Duration,
	take func(*pb.WatchResultsResponse) bool,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := &Error{
		Code:    codes.DeadlineExceeded,
		Message: "the server has been silent for " + silence.String() + ": the connection is lost, or the server hangs",
	}
	watchdog := time.AfterFunc(silence, func() { cancel(silent) })
	defer watchdog.Stop()
	stream, err := pb.NewJobServiceClient(c.streams).WatchResults(ctx, request)
	for err == nil {
		var message *pb.WatchResultsResponse
		watchdog.Reset(silence)
		if message, err = stream.Recv(); err == nil {
			watchdog.Stop()
			if !take(message) {
				return nil
			}
		}
	}
	if context.Cause(ctx) == silent {
		return silent
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

type method[Request, Reply any] func(context.Context, Request, ...grpc.CallOption) (Reply, error)

// call is one call with its repeats. harmless: twice does no more than once.
func call[Request, Reply any](
	ctx context.Context, deadline time.Duration, harmless bool, request Request, send method[Request, Reply],
) (Reply, error) {
	backoff := newPauses(firstPause, longestPause)
	late := 0
	for tries := 1; ; tries++ {
		bounded, cancel := context.WithTimeout(ctx, deadline)
		reply, err := send(bounded, request)
		cancel()
		if err == nil {
			return reply, nil
		}
		e := toError(ctx, err)
		if e.Code == codes.DeadlineExceeded {
			late++
		}
		last := tries == maxTries || late == maxLateTries || !e.repeatable(harmless) || e.delay() > longestRetryDelay
		if last || sleep(ctx, backoff.next(e.delay())) != nil {
			var none Reply
			return none, toError(ctx, e)
		}
	}
}

func withRequestID(request *pb.SubmitRequest) *pb.SubmitRequest {
	if request.GetRequestId() != "" {
		return request
	}
	request = cloned(request)
	request.RequestId = rand.Text()
	return request
}

// cloned is a request that may be changed. Nil is an empty one.
func cloned[M any, Request interface {
	*M
	proto.Message
}](request Request) Request {
	if request == nil {
		return new(M)
	}
	return proto.CloneOf(request)
}
