package jobwire

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

// fake is a server that says what a test tells it to, over real sockets.
type fake struct {
	pb.UnimplementedJobServiceServer
	pb.UnimplementedWorkerServiceServer

	mu           sync.Mutex
	submitted    []*pb.SubmitRequest
	submitErrors []error
	submitReply  *pb.SubmitResponse
	polls        int
	retries      int
	retryError   error
	deleted      []*pb.DeleteJobRequest
	watched      []*pb.WatchResultsRequest
	// What each stream brings: messages, and perhaps an error at the end.
	streams [][]any
	// Leases that the next hello loses.
	lost []string
	// What happens when a worker says that it takes no more, before anything else of it is read.
	onDrain  func(*fakeSession)
	sessions chan *fakeSession
	address  string
	server   *grpc.Server
}

func serve(t *testing.T) *fake {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{
		address:     listener.Addr().String(),
		sessions:    make(chan *fakeSession, 8),
		server:      grpc.NewServer(),
		submitReply: &pb.SubmitResponse{Job: &pb.Job{JobId: "a"}},
		retryError:  bare(codes.Unavailable),
		onDrain:     func(*fakeSession) {},
	}
	pb.RegisterJobServiceServer(f.server, f)
	pb.RegisterWorkerServiceServer(f.server, f)
	go func() { _ = f.server.Serve(listener) }()
	t.Cleanup(f.server.Stop)
	return f
}

func (f *fake) client(t *testing.T) *Client {
	t.Helper()
	client, err := Dial(f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// refusal is a status with details, as jobwire gives it.
func refusal(code codes.Code, reason, domain string, delay time.Duration) error {
	s, err := status.New(code, "no").WithDetails(
		&errdetails.ErrorInfo{Reason: reason, Domain: domain, Metadata: map[string]string{"key": "value"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "spec.kind", Description: "is missing"}}})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

func own(code codes.Code, reason string) error {
	return refusal(code, reason, domain, 10*time.Millisecond)
}

func bare(code codes.Code) error { return status.Error(code, "no") }

func notFound(id string) error {
	s, err := status.New(codes.NotFound, "no").WithDetails(&errdetails.ErrorInfo{
		Reason: "JOB_NOT_FOUND", Domain: domain, Metadata: map[string]string{"job_id": id}})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

func finished(id, cursor string, run int32) *pb.WatchResultsResponse {
	job := &pb.Job{JobId: id, Run: run}
	return &pb.WatchResultsResponse{Cursor: cursor, Event: &pb.WatchResultsResponse_Finished{Finished: job}}
}

func caughtUp(cursor string) *pb.WatchResultsResponse {
	checkpoint := &pb.Checkpoint{CaughtUp: true}
	return &pb.WatchResultsResponse{Cursor: cursor, Event: &pb.WatchResultsResponse_Checkpoint{Checkpoint: checkpoint}}
}

func (f *fake) Submit(_ context.Context, request *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.submitted = append(f.submitted, request)
	if len(f.submitErrors) > 0 {
		err := f.submitErrors[0]
		f.submitErrors = f.submitErrors[1:]
		return nil, err
	}
	return f.submitReply, nil
}

func (f *fake) GetResult(_ context.Context, request *pb.GetResultRequest) (*pb.GetResultResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.polls++
	return &pb.GetResultResponse{Done: f.polls > 2, Job: &pb.Job{JobId: request.JobId}}, nil
}

func (f *fake) ListJobs(_ context.Context, request *pb.ListJobsRequest) (*pb.ListJobsResponse, error) {
	next := map[string]string{"": "1", "1": "2"}[request.PageToken]
	return &pb.ListJobsResponse{NextPageToken: next}, nil
}

func (f *fake) RetryJob(context.Context, *pb.RetryJobRequest) (*pb.RetryJobResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.retries++
	return nil, f.retryError
}

func (f *fake) DeleteJob(_ context.Context, request *pb.DeleteJobRequest) (*pb.DeleteJobResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deleted = append(f.deleted, request)
	if len(f.deleted) == 1 {
		return nil, bare(codes.Unavailable)
	}
	return &pb.DeleteJobResponse{}, nil
}

func (f *fake) WatchResults(request *pb.WatchResultsRequest, stream grpc.ServerStreamingServer[pb.WatchResultsResponse]) error {
	f.mu.Lock()
	f.watched = append(f.watched, request)
	var script []any
	if len(f.streams) > 0 {
		script, f.streams = f.streams[0], f.streams[1:]
	}
	f.mu.Unlock()
	if script == nil {
		<-stream.Context().Done()
	}
	for _, item := range script {
		if err, ok := item.(error); ok {
			return err
		}
		if err := stream.Send(item.(*pb.WatchResultsResponse)); err != nil {
			return err
		}
	}
	return nil
}

// fakeSession is one stream of Work, as the server sees it.
type fakeSession struct {
	t        *testing.T
	mu       sync.Mutex
	stream   grpc.BidiStreamingServer[pb.WorkRequest, pb.WorkResponse]
	messages []*pb.WorkRequest
	ended    chan struct{}
	// What the stream ended with: io.EOF after a goodbye.
	end error
}

func (f *fake) Work(stream grpc.BidiStreamingServer[pb.WorkRequest, pb.WorkResponse]) error {
	s := &fakeSession{stream: stream, ended: make(chan struct{})}
	defer close(s.ended)
	for {
		message, err := stream.Recv()
		if err != nil {
			s.end = err
			return nil
		}
		s.mu.Lock()
		s.messages = append(s.messages, proto.CloneOf(message))
		s.mu.Unlock()
		if message.GetHello() != nil {
			f.mu.Lock()
			welcome := &pb.WorkerWelcome{
				HeartbeatInterval: durationpb.New(200 * time.Millisecond), LostLeaseIds: f.lost}
			f.mu.Unlock()
			s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Welcome{Welcome: welcome}})
			f.sessions <- s
		}
		if message.GetHeartbeat() != nil {
			s.send(&pb.WorkResponse{Message: &pb.WorkResponse_HeartbeatAck{HeartbeatAck: &pb.HeartbeatAck{}}})
		}
		if message.GetCapacity() != nil {
			f.mu.Lock()
			onDrain := f.onDrain
			f.mu.Unlock()
			onDrain(s)
		}
	}
}

func (f *fake) whenDrained(do func(*fakeSession)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onDrain = do
}

func (f *fake) session(t *testing.T) *fakeSession {
	t.Helper()
	select {
	case s := <-f.sessions:
		s.t = t
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no session began")
		return nil
	}
}

func (s *fakeSession) send(message *pb.WorkResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.stream.Send(message)
}

func (s *fakeSession) lease(id, kind string, payload any, sequence int64) {
	s.t.Helper()
	encoded, err := Encode(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	job := &pb.Job{JobId: "job-" + id, Attempt: 1, Spec: &pb.JobSpec{Kind: kind, Payload: encoded}}
	s.give(&pb.Lease{LeaseId: id, Sequence: sequence, Job: job})
}

func (s *fakeSession) give(lease *pb.Lease) {
	s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Lease{Lease: lease}})
}

func (s *fakeSession) drain() {
	s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Drain{Drain: &pb.WorkerDrain{}}})
}

// seen is the first message that passes, waited for.
func (s *fakeSession) seen(passes func(*pb.WorkRequest) bool) *pb.WorkRequest {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		messages := s.messages
		s.mu.Unlock()
		for _, message := range messages {
			if passes(message) {
				return message
			}
		}
	}
	s.t.Fatal("the message did not come")
	return nil
}

func (s *fakeSession) acknowledge(id string) *pb.Finish {
	s.t.Helper()
	finish := s.seen(func(m *pb.WorkRequest) bool { return m.GetFinish().GetLeaseId() == id }).GetFinish()
	ack := &pb.FinishAck{LeaseId: id, Accepted: true}
	s.send(&pb.WorkResponse{Message: &pb.WorkResponse_FinishAck{FinishAck: ack}})
	return finish
}
