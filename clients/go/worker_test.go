package jobwire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

// bench is a worker at work for a fake server.
type bench struct {
	fake    *fake
	proceed chan struct{}
	// Ends the worker's context.
	stop context.CancelFunc
	// Closed when the worker has ended.
	ended chan struct{}

	mu        sync.Mutex
	cancelled []error
}

// An error that cannot be read, and details that cannot be written.
type explosive struct{}

func (explosive) Error() string { panic("boom") }

func (explosive) MarshalJSON() ([]byte, error) { panic("boom") }

func work(t *testing.T, options WorkerOptions) *bench {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	b := &bench{fake: serve(t), proceed: make(chan struct{}), stop: stop, ended: make(chan struct{})}
	worker := NewWorker(b.fake.address, options)
	Handle(worker, "double", func(_ context.Context, _ *Attempt, n int) (int, error) { return n * 2, nil })
	Handle(worker, "bytes", func(_ context.Context, _ *Attempt, data []byte) ([]byte, error) { return data, nil })
	Handle(worker, "large", func(context.Context, *Attempt, any) ([]byte, error) { return make([]byte, 5<<20), nil })
	Handle(worker, "fail", func(_ context.Context, a *Attempt, how string) (any, error) {
		garbled := &pb.Payload{Body: &pb.Payload_Text{Text: "bad \xff"}}
		switch how {
		case "permanent":
			return nil, &Failure{Code: "x", Permanent: true, Details: []int{1}}
		case "later":
			return nil, &Failure{Code: "busy", RetryAfter: 1500 * time.Millisecond}
		case "panic":
			panic("boom")
		case "typed nil":
			var none *Failure
			return nil, none
		case "panicking error":
			return nil, explosive{}
		case "panicking details":
			return nil, &Failure{Code: "x", Details: explosive{}}
		case "exit":
			runtime.Goexit()
		case "long text":
			text := "a" + strings.Repeat("é", 3<<20)
			a.Progress(0.5, text)
			return nil, errors.New(text)
		case "large details":
			return nil, &Failure{Code: "x", Details: strings.Repeat("a", 16<<10)}
		case "saved":
			if err := a.Save(0.5, "half", 7); err != nil {
				return nil, err
			}
		case "garbled":
			a.Progress(0.5, "half \xff")
			return nil, errors.New("bad \xff")
		case "garbled failure":
			return nil, &Failure{Code: "x\xff", Message: "bad \xff"}
		case "garbled panic":
			panic("bad \xff")
		case "garbled checkpoint":
			return nil, a.Save(0.5, "half", garbled)
		case "garbled output":
			return garbled, nil
		}
		return nil, errors.New("boom")
	})
	Handle(worker, "wait", func(ctx context.Context, a *Attempt, _ any) (string, error) {
		if err := a.Save(0.25, "quarter", map[string]int{"page": 1}); err != nil {
			return "", err
		}
		a.Progress(0.5, "half")
		select {
		case <-b.proceed:
			return "done", nil
		case <-ctx.Done():
			b.mu.Lock()
			defer b.mu.Unlock()
			b.cancelled = append(b.cancelled, context.Cause(ctx))
			return "", ctx.Err()
		}
	})
	go func() {
		defer close(b.ended)
		if err := worker.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-b.ended
	})
	return b
}

func (b *bench) causes() []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.cancelled)
}

func isProgress(m *pb.WorkRequest) bool { return m.GetProgress() != nil }

func isHeartbeat(m *pb.WorkRequest) bool { return m.GetHeartbeat() != nil }

func TestOutcomes(t *testing.T) {
	b := work(t, WorkerOptions{Concurrency: 7, Queues: []string{"mail"}, WorkerID: "me"})
	s := b.fake.session(t)
	hello := s.seen(func(m *pb.WorkRequest) bool { return m.GetHello() != nil }).GetHello()
	if hello.WorkerId != "me" || hello.MaxInFlight != 7 || !reflect.DeepEqual(hello.Queues, []string{"mail"}) ||
		!reflect.DeepEqual(hello.Kinds, []string{"bytes", "double", "fail", "large", "wait"}) {
		t.Error(hello)
	}
	s.lease("a", "double", 21, 1)
	var doubled int
	if err := Decode(s.acknowledge("a").GetSucceeded(), &doubled); err != nil || doubled != 42 {
		t.Error(doubled, err)
	}
	for i, expected := range []struct {
		how, code, message string
		retryable          bool
		delay              time.Duration
	}{
		{"permanent", "x", "", false, 0},
		{"later", "busy", "", true, 1500 * time.Millisecond},
		{"plain", "error", "boom", true, 0},
		{"panic", "panic", "boom", true, 0},
	} {
		id := string(rune('b' + i))
		s.lease(id, "fail", expected.how, 1)
		failed := s.acknowledge(id).GetFailed()
		if failed.GetCode() != expected.code || failed.GetMessage() != expected.message ||
			failed.GetRetryable() != expected.retryable || failed.GetRetryDelay().AsDuration() != expected.delay {
			t.Error(expected, failed)
		}
	}
	s.lease("n", "bytes", nil, 1)
	s.give(&pb.Lease{LeaseId: "o", Job: &pb.Job{Spec: &pb.JobSpec{Kind: "bytes"}}})
	for id, expected := range map[string]string{"n": "null", "o": ""} {
		if data := s.acknowledge(id).GetSucceeded().GetData(); string(data) != expected {
			t.Errorf("%q, not %q", data, expected)
		}
	}
	s.lease("z", "double", "no number", 1)
	if failed := s.acknowledge("z").GetFailed(); failed.GetCode() != "payload.invalid" || failed.GetRetryable() {
		t.Error(failed)
	}
}

func TestAResultThatIsRefusedBecomesAFailure(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	isFinish := func(m *pb.WorkRequest) bool { return m.GetFinish() != nil }
	s.lease("a", "double", 1, 1)
	s.seen(isFinish)
	// Not now: it comes again. Not at all: a failure takes its place.
	for _, code := range []codes.Code{codes.Unavailable, codes.InvalidArgument} {
		s.mu.Lock()
		s.messages = nil
		s.mu.Unlock()
		rejection := &pb.Rejection{Code: int32(code), Message: "too large", RetryDelay: durationpb.New(time.Millisecond)}
		ack := &pb.FinishAck{LeaseId: "a", Rejection: rejection}
		s.send(&pb.WorkResponse{Message: &pb.WorkResponse_FinishAck{FinishAck: ack}})
		finish := s.seen(isFinish).GetFinish()
		if (finish.GetSucceeded() != nil) != (code == codes.Unavailable) {
			t.Error(code, finish)
		}
	}
	if failed := s.acknowledge("a").GetFailed(); failed.GetCode() != "output.invalid" || failed.GetMessage() != "too large" {
		t.Error(failed)
	}
	s.lease("b", "large", nil, 2)
	if failed := s.acknowledge("b").GetFailed(); failed.GetCode() != "output.invalid" {
		t.Error(failed)
	}
}

func TestAFailureThatIsRefusedIsTriedAgainIfItWas(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	for i, how := range []string{"later", "permanent"} {
		id := string(rune('a' + i))
		s.lease(id, "fail", how, int64(i+1))
		s.seen(func(m *pb.WorkRequest) bool { return m.GetFinish().GetLeaseId() == id })
		s.mu.Lock()
		s.messages = nil
		s.mu.Unlock()
		rejection := &pb.Rejection{Code: int32(codes.InvalidArgument), Message: "too far ahead"}
		ack := &pb.FinishAck{LeaseId: id, Rejection: rejection}
		s.send(&pb.WorkResponse{Message: &pb.WorkResponse_FinishAck{FinishAck: ack}})
		failed := s.acknowledge(id).GetFailed()
		if failed.GetRetryable() != (how == "later") || failed.GetMessage() != "too far ahead" {
			t.Error(how, failed)
		}
	}
}

func TestNoErrorOfAHandlerEndsTheWorker(t *testing.T) {
	b := work(t, WorkerOptions{Logger: slog.New(slog.DiscardHandler)})
	s := b.fake.session(t)
	for i, expected := range []struct{ how, message string }{
		{"typed nil", "nil pointer"},
		{"panicking error", "boom"},
		{"panicking details", "boom"},
		{"exit", "runtime.Goexit"},
	} {
		s.lease(expected.how, "fail", expected.how, int64(i+1))
		failed := s.acknowledge(expected.how).GetFailed()
		if failed.GetCode() != "panic" || !strings.Contains(failed.GetMessage(), expected.message) || !failed.GetRetryable() {
			t.Error(expected, failed)
		}
	}
	s.lease("b", "double", 1, 5)
	if finish := s.acknowledge("b"); finish.GetSucceeded() == nil {
		t.Error(finish)
	}
}

func TestAPanicIsLoggedWithItsStack(t *testing.T) {
	var log bytes.Buffer
	b := work(t, WorkerOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	s := b.fake.session(t)
	s.lease("a", "fail", "panic", 1)
	s.acknowledge("a")
	if text := log.String(); !strings.Contains(text, "boom") || !strings.Contains(text, "worker_test.go") {
		t.Error(text)
	}
}

func TestLongTextsAreCut(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.lease("a", "fail", "long text", 1)
	failed := s.acknowledge("a").GetFailed()
	if failed.GetCode() != "error" || !failed.GetRetryable() || len(failed.GetMessage()) != 8<<10-1 {
		t.Error(failed.GetCode(), failed.GetRetryable(), len(failed.GetMessage()))
	}
	if note := s.seen(isProgress).GetProgress().GetProgress().GetNote(); len(note) != 8<<10-1 {
		t.Error(len(note))
	}
}

func TestLargeDetailsAreLeftOut(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.lease("a", "fail", "large details", 1)
	failed := s.acknowledge("a").GetFailed()
	if failed.GetCode() != "x" || !failed.GetRetryable() || failed.Details != nil {
		t.Error(failed)
	}
}

func TestInvalidTextDoesNotEndTheSession(t *testing.T) {
	for _, expected := range []struct{ how, code, message string }{
		{"garbled", "error", "bad \ufffd"},
		{"garbled failure", "x\ufffd", "bad \ufffd"},
		{"garbled panic", "panic", "bad \ufffd"},
		{"garbled checkpoint", "checkpoint.invalid", ""},
		{"garbled output", "output.invalid", ""},
	} {
		t.Run(expected.how, func(t *testing.T) {
			b := work(t, WorkerOptions{DrainTimeout: 100 * time.Millisecond})
			s := b.fake.session(t)
			s.lease("a", "fail", expected.how, 1)
			failed := s.acknowledge("a").GetFailed()
			if failed.GetCode() != expected.code || expected.message != "" && failed.GetMessage() != expected.message {
				t.Error(failed)
			}
			// A job later, there still is one session and one result.
			s.lease("b", "double", 1, 2)
			s.acknowledge("b")
			s.mu.Lock()
			defer s.mu.Unlock()
			finishes := 0
			for _, message := range s.messages {
				if message.GetFinish().GetLeaseId() == "a" {
					finishes++
				}
				if note := message.GetProgress().GetProgress().GetNote(); note != "" && note != "half \ufffd" {
					t.Error(note)
				}
			}
			if finishes != 1 || len(b.fake.sessions) != 0 {
				t.Error(finishes, len(b.fake.sessions))
			}
		})
	}
}

func TestHeartbeatsNameWhatIsHeldAndProgressKeepsItsCheckpoint(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.lease("a", "wait", nil, 5)
	beat := s.seen(func(m *pb.WorkRequest) bool { return len(m.GetHeartbeat().GetLeaseIds()) == 1 }).GetHeartbeat()
	if beat.LeaseIds[0] != "a" || beat.LastLeaseSequence != 5 {
		t.Error(beat)
	}
	half := func(m *pb.WorkRequest) bool { return m.GetProgress().GetProgress().GetFraction() == 0.5 }
	progress := s.seen(half).GetProgress().GetProgress()
	var checkpoint map[string]int
	if err := Decode(progress.GetDetails(), &checkpoint); err != nil || checkpoint["page"] != 1 || progress.Note != "half" {
		t.Error(progress, err)
	}
	close(b.proceed)
	s.acknowledge("a")
	s.seen(func(m *pb.WorkRequest) bool { return m.GetHeartbeat() != nil && len(m.GetHeartbeat().LeaseIds) == 0 })
}

func TestAHeartbeatNamesLeasesBeforeTheirWorkBegins(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	for i, id := range []string{"a", "b", "c"} {
		s.lease(id, "wait", nil, int64(i+1))
	}
	close(b.proceed)
	for _, id := range []string{"a", "b", "c"} {
		s.acknowledge(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	named := map[string]bool{}
	for _, message := range s.messages {
		for _, id := range message.GetHeartbeat().GetLeaseIds() {
			named[id] = true
		}
		if isProgress(message) && !named[message.GetProgress().LeaseId] {
			t.Error(message)
		}
	}
}

func TestARevokedLeaseEndsTheContext(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.lease("a", "wait", nil, 1)
	s.seen(isProgress)
	s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Revoked{Revoked: &pb.LeaseRevoked{LeaseId: "a"}}})
	if failed := s.acknowledge("a").GetFailed(); failed.GetCode() != "interrupted" || b.causes()[0] != ErrRevoked {
		t.Error(failed, b.causes())
	}
}

func TestALostLeaseIsDropped(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.lease("a", "wait", nil, 1)
	s.seen(isProgress)
	ack := &pb.HeartbeatAck{LostLeaseIds: []string{"a"}}
	s.send(&pb.WorkResponse{Message: &pb.WorkResponse_HeartbeatAck{HeartbeatAck: ack}})
	for len(b.causes()) == 0 {
		time.Sleep(time.Millisecond)
	}
	s.lease("b", "double", 1, 2)
	s.acknowledge("b")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, message := range s.messages {
		if message.GetFinish().GetLeaseId() == "a" {
			t.Error(message)
		}
	}
	if b.causes()[0] != ErrLost {
		t.Error(b.causes())
	}
}

func TestAWorkerComesBackWithWhatItHolds(t *testing.T) {
	b := work(t, WorkerOptions{})
	first := b.fake.session(t)
	first.lease("a", "wait", nil, 1)
	first.lease("b", "double", 4, 2)
	first.lease("c", "wait", nil, 3)
	first.seen(func(m *pb.WorkRequest) bool { return m.GetFinish() != nil })
	first.seen(func(m *pb.WorkRequest) bool { return len(m.GetHeartbeat().GetLeaseIds()) == 2 })
	b.fake.mu.Lock()
	b.fake.lost = []string{"c"}
	b.fake.mu.Unlock()
	first.drain()
	second := b.fake.session(t)
	held := second.seen(func(m *pb.WorkRequest) bool { return m.GetHello() != nil }).GetHello().HeldLeaseIds
	slices.Sort(held)
	if !reflect.DeepEqual(held, []string{"a", "b", "c"}) {
		t.Error(held)
	}
	// The result that was not acknowledged comes again.
	var doubled int
	if err := Decode(second.acknowledge("b").GetSucceeded(), &doubled); err != nil || doubled != 8 {
		t.Error(doubled, err)
	}
	second.seen(func(m *pb.WorkRequest) bool { return m.GetProgress().GetLeaseId() == "a" })
	<-first.ended
	for len(b.causes()) == 0 {
		time.Sleep(time.Millisecond)
	}
	close(b.proceed)
	second.acknowledge("a")
	if causes := b.causes(); len(causes) != 1 || causes[0] != ErrLost {
		t.Error(causes)
	}
}

func TestAResultOfALostLeaseIsSentAllTheSame(t *testing.T) {
	b := work(t, WorkerOptions{DrainTimeout: 100 * time.Millisecond})
	first := b.fake.session(t)
	first.lease("a", "double", 4, 1)
	first.seen(func(m *pb.WorkRequest) bool { return m.GetFinish() != nil })
	b.fake.mu.Lock()
	b.fake.lost = []string{"a"}
	b.fake.mu.Unlock()
	first.drain()
	second := b.fake.session(t)
	second.seen(func(m *pb.WorkRequest) bool { return m.GetFinish().GetSucceeded() != nil })
	// Its acknowledgement decides: too late.
	rejection := &pb.Rejection{Code: int32(codes.FailedPrecondition), Reason: "LEASE_LOST"}
	ack := &pb.FinishAck{LeaseId: "a", Rejection: rejection}
	second.send(&pb.WorkResponse{Message: &pb.WorkResponse_FinishAck{FinishAck: ack}})
	second.drain()
	third := b.fake.session(t)
	if hello := third.seen(func(m *pb.WorkRequest) bool { return m.GetHello() != nil }).GetHello(); len(hello.HeldLeaseIds) > 0 {
		t.Error(hello)
	}
}

func TestACheckpointComesBackBeforeItsResult(t *testing.T) {
	b := work(t, WorkerOptions{})
	first := b.fake.session(t)
	first.lease("a", "fail", "saved", 1)
	first.seen(func(m *pb.WorkRequest) bool { return m.GetFinish() != nil })
	first.drain()
	second := b.fake.session(t)
	second.acknowledge("a")
	second.mu.Lock()
	defer second.mu.Unlock()
	for _, message := range second.messages {
		if message.GetProgress().GetProgress().GetDetails().GetText() == "7" {
			return
		}
		if message.GetFinish() != nil {
			t.Fatal("the result came first")
		}
	}
}

func TestTheTimeOfAnAttemptEndsItWithoutTheServer(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	for i, off := range []time.Duration{time.Hour, -time.Hour} {
		id := string(rune('a' + i))
		start := time.Now().Add(off)
		job := &pb.Job{Spec: &pb.JobSpec{Kind: "wait"}, StartTime: timestamppb.New(start)}
		s.give(&pb.Lease{LeaseId: id, Job: job, AttemptDeadline: timestamppb.New(start.Add(200 * time.Millisecond))})
		if failed := s.acknowledge(id).GetFailed(); failed.GetCode() != "interrupted" {
			t.Error(failed)
		}
		if causes := b.causes(); len(causes) != i+1 || causes[i] != ErrRevoked {
			t.Error(causes)
		}
	}
}

func TestADeadlineIsByTheClockOfThisMachine(t *testing.T) {
	start := time.Now().Add(time.Hour)
	end := timestamppb.New(start.Add(time.Minute))
	lease := &pb.Lease{AttemptDeadline: end, Job: &pb.Job{StartTime: timestamppb.New(start)}}
	if left := time.Until(deadline(lease)).Round(time.Second); left != time.Minute {
		t.Error(left)
	}
	if got := deadline(&pb.Lease{AttemptDeadline: end}); !got.Equal(end.AsTime()) {
		t.Error(got)
	}
	if got := deadline(&pb.Lease{}); !got.IsZero() {
		t.Error(got)
	}
}

func TestADrainAnswersWhatIsOnItsWay(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.seen(isHeartbeat)
	b.fake.whenDrained(func(s *fakeSession) { s.lease("a", "double", 1, 1) })
	b.stop()
	if finish := s.acknowledge("a"); finish.GetReleased() == nil {
		t.Error(finish)
	}
	<-s.ended
	if s.end != io.EOF {
		t.Error(s.end)
	}
}

func TestADrainDoesNotWaitForALostSession(t *testing.T) {
	b := work(t, WorkerOptions{DrainTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)})
	b.fake.session(t).seen(isHeartbeat)
	b.fake.whenDrained(func(s *fakeSession) {
		go b.fake.server.Stop()
		<-s.stream.Context().Done()
	})
	b.stop()
	select {
	case <-b.ended:
	case <-time.After(10 * time.Second):
		t.Error("it waits")
	}
}

func TestNoHeartbeatGoesWithTheGoodbye(t *testing.T) {
	if s := (&session{beatDue: true}); !s.mayBeat() {
		t.Error("it is due")
	}
	if s := (&session{beatDue: true, closing: true}); s.mayBeat() {
		t.Error("it goes")
	}
}

func TestAWorkerRunsOnce(t *testing.T) {
	worker := NewWorker(serve(t).address, WorkerOptions{})
	if err := worker.Run(t.Context()); err == nil {
		t.Error("it has no handler")
	}
	Handle(worker, "any", func(context.Context, *Attempt, any) (any, error) { return nil, nil })
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := worker.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := worker.Run(ctx); err == nil {
		t.Error("it runs a second time")
	}
}

func TestADrainLetsHandlersEnd(t *testing.T) {
	b := work(t, WorkerOptions{})
	s := b.fake.session(t)
	s.lease("a", "wait", nil, 1)
	s.seen(isProgress)
	b.stop()
	s.seen(func(m *pb.WorkRequest) bool { return m.GetCapacity() != nil && m.GetCapacity().MaxInFlight == 0 })
	// On its way before the server knew: given back.
	s.lease("b", "double", 1, 2)
	if finish := s.acknowledge("b"); finish.GetReleased() == nil {
		t.Error(finish)
	}
	close(b.proceed)
	if finish := s.acknowledge("a"); finish.GetSucceeded() == nil {
		t.Error(finish)
	}
	<-s.ended
	if len(b.causes()) != 0 {
		t.Error(b.causes())
	}
}

func TestADrainGivesBackWhatDoesNotEnd(t *testing.T) {
	b := work(t, WorkerOptions{DrainTimeout: 100 * time.Millisecond})
	s := b.fake.session(t)
	s.lease("a", "wait", nil, 1)
	s.seen(isProgress)
	b.stop()
	if finish := s.acknowledge("a"); finish.GetReleased() == nil || b.causes()[0] != ErrEnding {
		t.Error(finish, b.causes())
	}
}

func TestARefusalEndsTheWorker(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	defer server.Stop()
	go func() { _ = server.Serve(listener) }()
	worker := NewWorker(listener.Addr().String(), WorkerOptions{})
	Handle(worker, "any", func(context.Context, *Attempt, any) (any, error) { return nil, nil })
	var e *Error
	if err := worker.Run(t.Context()); !errors.As(err, &e) || e.Code != codes.Unimplemented {
		t.Error(err)
	}
}

// brief are sessions that end after their welcome or, if it is answered, after their first heartbeat.
type brief struct {
	pb.WorkerServiceClient
	pb.WorkerService_WorkClient
	answered bool
	sessions int
	ctx      context.Context
	messages chan *pb.WorkResponse
}

func (b *brief) Work(ctx context.Context, _ ...grpc.CallOption) (pb.WorkerService_WorkClient, error) {
	b.sessions++
	return &brief{answered: b.answered, ctx: ctx, messages: make(chan *pb.WorkResponse, 2)}, nil
}

func (b *brief) Context() context.Context { return b.ctx }

func (b *brief) CloseSend() error { return nil }

func (b *brief) Send(request *pb.WorkRequest) error {
	switch {
	case request.GetHello() != nil:
		b.messages <- &pb.WorkResponse{Message: &pb.WorkResponse_Welcome{Welcome: &pb.WorkerWelcome{}}}
		if !b.answered {
			close(b.messages)
		}
	case b.answered:
		b.messages <- &pb.WorkResponse{Message: &pb.WorkResponse_HeartbeatAck{HeartbeatAck: &pb.HeartbeatAck{}}}
		close(b.messages)
	}
	return nil
}

func (b *brief) Recv() (*pb.WorkResponse, error) {
	if message, more := <-b.messages; more {
		return message, nil
	}
	return nil, io.EOF
}

func TestPausesGrowUntilAHeartbeatIsAnswered(t *testing.T) {
	for _, answered := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			rpc := &brief{answered: answered}
			worker := NewWorker("localhost", WorkerOptions{Logger: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := worker.keepConnected(ctx, rpc); err != nil {
				t.Fatal(err)
			}
			// Pauses that do not grow are 0.25 s at most.
			if (rpc.sessions > 400) != answered {
				t.Error(answered, rpc.sessions)
			}
		})
	}
}

func TestAWorkerIsNotNamedLikeAServer(t *testing.T) {
	for _, host := range []string{"server-1", strings.Repeat("x", 300)} {
		if id := newID(host, nil); !strings.HasPrefix(id, "go-") || len(id) > 100 {
			t.Error(id)
		}
	}
}
