package jobwire

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

const (
	sdk = "jobwire-go/0.1.0"
	// For handlers to heed their context, and for the last results, when a worker ends.
	lastWords = 5 * time.Second
	// Before a result is sent again that the server could not take.
	resendPause        = time.Second
	maxCheckpointBytes = 16 << 10
	// The server cuts a longer text, and drops longer details of a failure.
	maxTextBytes    = 8 << 10
	maxDetailsBytes = 16 << 10
	maxFinishBytes  = maxMessageBytes - 1024
)

// Why the context of a handler ended: see context.Cause.
var (
	ErrRevoked = errors.New("the job was cancelled, or the attempt's time is over")
	ErrLost    = errors.New("the lease is lost")
	ErrEnding  = errors.New("the worker ends")
)

// Failure is an error of a handler that says what becomes of the job. Any other error fails the attempt as retryable,
// with the code "error".
type Failure struct {
	// Code is a stable word, such as smtp.refused.
	Code    string
	Message string
	// Permanent ends the job at once.
	Permanent bool
	// RetryAfter takes the place of the back-off.
	RetryAfter time.Duration
	// Details go to whoever reads the outcome, as JSON of at most 16 KiB. Nil for none.
	Details any
}

func (f *Failure) Error() string {
	if f.Message == "" {
		return f.Code
	}
	return f.Code + ": " + f.Message
}

func (f *Failure) report() *pb.JobError {
	report := &pb.JobError{Code: cut(f.Code), Message: cut(f.Message), Retryable: !f.Permanent}
	if f.Details != nil {
		details, err := encodeWithin(maxDetailsBytes, f.Details)
		if err != nil {
			report.Message = cut(f.Message + " (its details are left out: " + err.Error() + ")")
		}
		report.Details = details
	}
	if f.RetryAfter > 0 {
		report.RetryDelay = durationpb.New(f.RetryAfter)
	}
	return report
}

// WorkerOptions is what a worker may be told.
type WorkerOptions struct {
	// Concurrency is how many jobs run at the same time. 0 means 16.
	Concurrency int
	// Queues to take jobs from. Empty means "default".
	Queues []string
	// WorkerID is made of host and process id if it is empty.
	WorkerID string
	Labels   map[string]string
	// DrainTimeout is how long a drain waits for handlers. 0 means 30 s.
	DrainTimeout time.Duration
	DialOptions  []grpc.DialOption
	// Logger is slog.Default if it is nil.
	Logger *slog.Logger
}

// Worker runs the jobs of the kinds that have a handler.
type Worker struct {
	address  string
	options  WorkerOptions
	handlers map[string]func(context.Context, *Attempt) (*pb.Payload, error)

	mu       sync.Mutex
	ran      bool
	draining bool
	held     map[string]*Attempt
	session  *session
	// The highest that has arrived over the session.
	lastSequence int64
	// Leases may be on their way over the session, until a heartbeat is answered that was sent after the window was closed.
	expecting bool
	// The newest heartbeat of the session was.
	lastCall bool
	// Closed, and replaced, when something is no longer held or expected.
	released chan struct{}
}

// NewWorker makes a worker for the server at http://host:port or host:port; without a port, 50051.
func NewWorker(address string, options WorkerOptions) *Worker {
	if options.Concurrency == 0 {
		options.Concurrency = 16
	}
	if options.WorkerID == "" {
		options.WorkerID = newID(os.Hostname())
	}
	if options.DrainTimeout == 0 {
		options.DrainTimeout = 30 * time.Second
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	return &Worker{
		address:  address,
		options:  options,
		handlers: map[string]func(context.Context, *Attempt) (*pb.Payload, error){},
		held:     map[string]*Attempt{},
		released: make(chan struct{}),
	}
}

// newID names a worker after its host. Names that begin with `server-` are refused, as that of a host may.
func newID(host string, _ error) string {
	return fmt.Sprintf("go-%.64s-%d-%s", host, os.Getpid(), rand.Text()[:6])
}

// Handle registers a function for a kind, before Run. The payload comes decoded, see [Decode]; what is returned becomes
// the output, see [Encode]. A *[Failure] says how the attempt failed; a panic is a failure too, with the code "panic". The
// context ends when the job is cancelled, the attempt's time is over, the lease is lost or the worker ends.
func Handle[In, Out any](w *Worker, kind string, handler func(context.Context, *Attempt, In) (Out, error)) {
	w.handlers[kind] = func(ctx context.Context, attempt *Attempt) (*pb.Payload, error) {
		var in In
		if err := Decode(attempt.Job().GetSpec().GetPayload(), &in); err != nil {
			return nil, &Failure{Code: "payload.invalid", Message: err.Error(), Permanent: true}
		}
		out, err := handler(ctx, attempt, in)
		if err != nil {
			return nil, err
		}
		payload, err := Encode(out)
		if err != nil {
			return nil, &Failure{Code: "output.invalid", Message: err.Error(), Permanent: true}
		}
		return payload, nil
	}
}

// Attempt is one attempt, as its handler sees it.
type Attempt struct {
	worker   *Worker
	lease    *pb.Lease
	deadline time.Time
	ctx      context.Context
	cancel   context.CancelCauseFunc

	// Under the worker's lock.
	progress *pb.Progress
	begun    bool
	reported bool
	finish   *pb.Finish
	giveBack bool
	// The server would not have the handler's own result.
	refused bool
}

// Job is the job. Its JobId, Run and Attempt serve a handler's own idempotency: it may run more than once.
func (a *Attempt) Job() *pb.Job { return a.lease.GetJob() }

// Deadline is when the attempt's time is over, by the clock of this machine. Zero if it has no end.
func (a *Attempt) Deadline() time.Time { return a.deadline }

// deadline is the end of an attempt that begins now. What the lease says is by the server's clock, which may differ.
func deadline(lease *pb.Lease) time.Time {
	end, start := lease.GetAttemptDeadline(), lease.GetJob().GetStartTime()
	switch {
	case end == nil:
		return time.Time{}
	case start == nil:
		return end.AsTime()
	default:
		return time.Now().Add(end.AsTime().Sub(start.AsTime()))
	}
}

// Checkpoint reads the newest checkpoint, of this attempt or one before. False without one.
func (a *Attempt) Checkpoint(into any) (bool, error) {
	a.worker.mu.Lock()
	details := a.progress.GetDetails()
	a.worker.mu.Unlock()
	if details == nil {
		return false, nil
	}
	return true, Decode(details, into)
}

// Progress reports how far the attempt is, from 0 to 1. Only the newest report is kept.
func (a *Attempt) Progress(fraction float64, note string) { a.report(fraction, note, nil) }

// Save is Progress with a checkpoint: a value of at most 16 KiB that is handed to the next attempt if this one fails.
func (a *Attempt) Save(fraction float64, note string, checkpoint any) error {
	details, err := encodeWithin(maxCheckpointBytes, checkpoint)
	if err != nil {
		return &Failure{Code: "checkpoint.invalid", Message: err.Error(), Permanent: true}
	}
	a.report(fraction, note, details)
	return nil
}

func (a *Attempt) report(fraction float64, note string, details *pb.Payload) {
	a.worker.mu.Lock()
	defer a.worker.mu.Unlock()
	if details == nil {
		// A checkpoint stays with later reports that bring none.
		details = a.progress.GetDetails()
	}
	a.progress = &pb.Progress{Fraction: fraction, Note: cut(note), Details: details}
	a.reported = true
	if a.finish == nil {
		a.worker.postProgress(a)
	}
}

// Run works until its context ends, through restarts of the server. Then it takes no more jobs, lets those that run end
// for DrainTimeout, and gives the rest back uncounted. It fails if the server refuses this worker. A worker runs once.
func (w *Worker) Run(ctx context.Context) error {
	if len(w.handlers) == 0 {
		return errors.New("the worker has no handler")
	}
	connection, err := dial(w.address, w.options.DialOptions)
	if err != nil {
		return err
	}
	defer connection.Close()
	if !w.start() {
		return errors.New("the worker has ended: make another one")
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	lost := make(chan struct{})
	var refusal *Error
	go func() {
		defer close(lost)
		refusal = w.keepConnected(life, pb.NewWorkerServiceClient(connection))
	}()
	select {
	case <-lost:
	case <-ctx.Done():
		w.drain(lost)
	}
	w.mu.Lock()
	w.cancelAll()
	last := w.session
	w.mu.Unlock()
	if last != nil {
		last.close()
	}
	// Only now: the session ends with it.
	end()
	<-lost
	if refusal != nil {
		return refusal
	}
	return nil
}

// start is false unless it is the first one.
func (w *Worker) start() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := !w.ran
	w.ran = true
	return first
}

func (w *Worker) drain(lost <-chan struct{}) {
	w.mu.Lock()
	w.draining = true
	if w.session != nil {
		w.session.post("capacity", capacity(0))
		// Leases that were sent before the server knew come before the answer.
		w.session.beat()
	}
	w.mu.Unlock()
	w.idle(w.options.DrainTimeout, lost)
	w.mu.Lock()
	// That was long enough.
	w.expecting = false
	w.cancelAll()
	w.mu.Unlock()
	w.idle(lastWords, lost)
	w.mu.Lock()
	for _, attempt := range w.held {
		w.settle(attempt, released("the handler did not end"))
	}
	w.mu.Unlock()
	w.idle(lastWords, lost)
}

// idle waits until nothing is held nor expected, but no longer than this, nor without a link.
func (w *Worker) idle(timeout time.Duration, lost <-chan struct{}) {
	over := time.After(timeout)
	for {
		w.mu.Lock()
		busy, released := len(w.held) > 0 || w.expecting, w.released
		w.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-released:
		case <-over:
			return
		case <-lost:
			return
		}
	}
}

func (w *Worker) keepConnected(ctx context.Context, rpc pb.WorkerServiceClient) *Error {
	backoff := newPauses(firstStreamPause, longestStreamPause)
	for ctx.Err() == nil {
		session, err := openSession(ctx, rpc, w.hello())
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			if !err.resumable() {
				return err
			}
			w.options.Logger.Warn("no session with the server, trying again", "error", err)
			_ = sleep(ctx, backoff.next(err.delay()))
			continue
		}
		// The old one goes only now: until here it could still take results.
		if old := w.adopt(ctx, session); old != nil {
			old.close()
		}
		var asked time.Duration
		select {
		case <-ctx.Done():
		case <-session.leaving:
			w.mu.Lock()
			w.expectNothing()
			w.mu.Unlock()
			if session.err != nil {
				asked = session.err.delay()
				w.options.Logger.Warn("lost the session with the server", "error", session.err)
			}
			// A welcome alone is no success: what is sent next may be what ends every session.
			if session.useful() {
				backoff.reset()
			}
			_ = sleep(ctx, backoff.next(asked))
		}
	}
	return nil
}

func (w *Worker) hello() *pb.WorkerHello {
	w.mu.Lock()
	defer w.mu.Unlock()
	window := w.options.Concurrency
	if w.draining {
		window = 0
	}
	return &pb.WorkerHello{
		WorkerId:     w.options.WorkerID,
		Kinds:        slices.Sorted(maps.Keys(w.handlers)),
		Queues:       w.options.Queues,
		MaxInFlight:  int32(window),
		HeldLeaseIds: slices.Collect(maps.Keys(w.held)),
		Labels:       w.options.Labels,
		Sdk:          sdk,
	}
}

// adopt brings a new session up to date with what is held, and returns the one before.
func (w *Worker) adopt(ctx context.Context, next *session) *session {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.session
	w.session = next
	for _, id := range next.welcome.GetLostLeaseIds() {
		w.lose(id)
	}
	if w.draining {
		next.post("capacity", capacity(0))
	}
	for _, attempt := range w.held {
		// First: the newest checkpoint may not have arrived.
		if attempt.reported {
			w.postProgress(attempt)
		}
		if attempt.finish != nil {
			w.postFinish(attempt)
		}
	}
	w.lastSequence, w.lastCall, w.expecting = 0, false, true
	next.start(ctx, w.receive, func() *pb.WorkerHeartbeat { return w.heartbeat(next) })
	next.beat()
	return old
}

// heartbeat names what is at work: a result is on its way before it.
func (w *Worker) heartbeat(session *session) *pb.WorkerHeartbeat {
	w.mu.Lock()
	defer w.mu.Unlock()
	beat := &pb.WorkerHeartbeat{}
	if session == w.session {
		beat.LastLeaseSequence = w.lastSequence
		w.lastCall = w.draining
	}
	for id, attempt := range w.held {
		if attempt.finish == nil {
			beat.LeaseIds = append(beat.LeaseIds, id)
		}
	}
	return beat
}

func (w *Worker) receive(session *session, message *pb.WorkResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// What a newer server may send beyond this is ignored.
	switch message := message.GetMessage().(type) {
	case *pb.WorkResponse_Lease:
		if session == w.session {
			w.lastSequence = max(w.lastSequence, message.Lease.GetSequence())
		}
		w.take(session, message.Lease)
	case *pb.WorkResponse_HeartbeatAck:
		for _, id := range message.HeartbeatAck.GetLostLeaseIds() {
			w.lose(id)
		}
		if session == w.session && w.lastCall {
			w.expectNothing()
		}
		for _, id := range session.named() {
			w.begin(id)
		}
	case *pb.WorkResponse_FinishAck:
		w.settled(message.FinishAck)
	case *pb.WorkResponse_Revoked:
		if attempt := w.held[message.Revoked.GetLeaseId()]; attempt != nil {
			attempt.cancel(ErrRevoked)
		}
	case *pb.WorkResponse_Drain:
		session.leave(nil)
	}
}

func (w *Worker) take(session *session, lease *pb.Lease) {
	if w.held[lease.LeaseId] != nil {
		return
	}
	attempt := &Attempt{
		worker:   w,
		lease:    lease,
		deadline: deadline(lease),
		progress: &pb.Progress{Details: lease.GetJob().GetProgress().GetDetails()},
	}
	attempt.ctx, attempt.cancel = context.WithCancelCause(context.Background())
	w.held[lease.LeaseId] = attempt
	switch {
	case w.handlers[attempt.Job().GetSpec().GetKind()] == nil:
		w.settle(attempt, released("no handler for this kind"))
	case w.draining:
		w.settle(attempt, released("the worker ends"))
	default:
		// An attempt that nobody confirmed does not count: a job that ends this process at once would run for ever.
		session.beat()
	}
}

// begin starts the work of a lease when the heartbeat that names it was answered: gRPC does not tell when a message is
// written.
func (w *Worker) begin(id string) {
	attempt := w.held[id]
	if attempt == nil || attempt.begun || attempt.finish != nil {
		return
	}
	attempt.begun = true
	if w.draining {
		attempt.giveBack = true
		attempt.cancel(ErrEnding)
	}
	go w.work(attempt, w.handlers[attempt.Job().GetSpec().GetKind()])
}

func (w *Worker) work(attempt *Attempt, handler func(context.Context, *Attempt) (*pb.Payload, error)) {
	if !attempt.deadline.IsZero() {
		// The server tells as well, if it can.
		over := time.AfterFunc(time.Until(attempt.deadline), func() { attempt.cancel(ErrRevoked) })
		defer over.Stop()
	}
	// What is left where the handler ends its goroutine.
	finish := failed(&Failure{Code: "panic", Message: "the handler called runtime.Goexit"})
	defer func() {
		attempt.cancel(nil)
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, succeeded := finish.Outcome.(*pb.Finish_Succeeded); attempt.giveBack && !succeeded {
			finish = released("the worker ends")
		}
		w.settle(attempt, finish)
	}()
	finish = w.outcome(attempt, handler)
}

// outcome runs a handler. What panics becomes a failure, also the handler's error when it is read, so that one job does
// not end the others.
func (w *Worker) outcome(
	attempt *Attempt, handler func(context.Context, *Attempt) (*pb.Payload, error),
) (finish *pb.Finish) {
	defer func() {
		if panicked := recover(); panicked != nil {
			message := fmt.Sprint(panicked)
			w.options.Logger.Error("a handler panicked",
				"job_id", attempt.Job().GetJobId(), "panic", message, "stack", string(debug.Stack()))
			finish = failed(&Failure{Code: "panic", Message: message})
		}
	}()
	if attempt.ctx.Err() != nil {
		return interrupted()
	}
	output, err := handler(attempt.ctx, attempt)
	var failure *Failure
	switch {
	case err == nil:
		return succeeded(output)
	case errors.As(err, &failure):
		return failed(failure)
	case attempt.ctx.Err() != nil:
		return interrupted()
	default:
		return failed(&Failure{Code: "error", Message: err.Error()})
	}
}

// settle keeps a result until the server has acknowledged it.
func (w *Worker) settle(attempt *Attempt, finish *pb.Finish) {
	if attempt.finish != nil || w.held[attempt.lease.LeaseId] != attempt {
		return
	}
	finish.LeaseId = attempt.lease.LeaseId
	attempt.finish = finish
	w.postFinish(attempt)
}

func (w *Worker) settled(ack *pb.FinishAck) {
	attempt := w.held[ack.GetLeaseId()]
	if attempt == nil || attempt.finish == nil {
		return
	}
	rejection := ack.GetRejection()
	code := codes.Code(rejection.GetCode())
	if ack.GetAccepted() {
		code = codes.OK
	} else {
		w.options.Logger.Warn("the server refused a result", "reason", rejection.GetReason(), "why", rejection.GetMessage())
	}
	switch {
	case code == codes.Unavailable, code == codes.ResourceExhausted:
		pause := resendPause
		if rejection.GetRetryDelay() != nil {
			pause = rejection.GetRetryDelay().AsDuration()
		}
		time.AfterFunc(pause, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.postFinish(attempt)
		})
	case code == codes.InvalidArgument && !attempt.refused:
		instead := refused(attempt.finish, rejection.GetMessage())
		attempt.refused = true
		attempt.finish = nil
		w.settle(attempt, instead)
	default: // Accepted, or too late.
		w.forget(ack.GetLeaseId())
	}
}

func (w *Worker) postFinish(attempt *Attempt) {
	id := attempt.lease.LeaseId
	if w.session != nil && w.held[id] == attempt {
		w.session.post("finish "+id, &pb.WorkRequest{Message: &pb.WorkRequest_Finish{Finish: attempt.finish}})
	}
}

func (w *Worker) postProgress(attempt *Attempt) {
	id := attempt.lease.LeaseId
	if w.session != nil && w.held[id] == attempt {
		report := &pb.LeaseProgress{LeaseId: id, Progress: proto.CloneOf(attempt.progress)}
		w.session.post("progress "+id, &pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: report}})
	}
}

// lose drops a lease that is somebody else's by now: its work is for nothing. A result that is there may still count, and
// waits for its answer.
func (w *Worker) lose(id string) {
	if attempt := w.held[id]; attempt != nil && attempt.finish == nil {
		w.options.Logger.Warn("lost the lease of a job", "job_id", attempt.Job().GetJobId())
		attempt.cancel(ErrLost)
		w.forget(id)
	}
}

func (w *Worker) forget(id string) {
	delete(w.held, id)
	w.wake()
}

// expectNothing: no lease is on its way.
func (w *Worker) expectNothing() {
	w.expecting = false
	w.wake()
}

// wake lets a drain look again.
func (w *Worker) wake() {
	close(w.released)
	w.released = make(chan struct{})
}

func (w *Worker) cancelAll() {
	for _, attempt := range w.held {
		if attempt.finish == nil {
			attempt.giveBack = true
			attempt.cancel(ErrEnding)
		}
	}
}

// fits writes a message to try it: one that cannot be written would end the session, and the next one, and so on.
func fits(message proto.Message, most int, otherwise string) error {
	encoded, err := proto.Marshal(message)
	if err == nil && len(encoded) > most {
		err = errors.New(otherwise)
	}
	return err
}

func encodeWithin(most int, value any) (*pb.Payload, error) {
	payload, err := Encode(value)
	if err == nil {
		err = fits(payload, most, fmt.Sprintf("larger than %d KiB", most>>10))
	}
	if err != nil {
		return nil, err
	}
	return payload, nil
}

// cut is text that a message can carry, and that leaves room for the rest of it.
func cut(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	// Without half a character.
	return strings.ToValidUTF8(text[:min(len(text), maxTextBytes)], "")
}

func capacity(window int32) *pb.WorkRequest {
	return &pb.WorkRequest{Message: &pb.WorkRequest_Capacity{Capacity: &pb.WorkerCapacity{MaxInFlight: window}}}
}

func released(reason string) *pb.Finish {
	return &pb.Finish{Outcome: &pb.Finish_Released{Released: &pb.Release{Reason: reason}}}
}

func succeeded(output *pb.Payload) *pb.Finish {
	finish := &pb.Finish{Outcome: &pb.Finish_Succeeded{Succeeded: output}}
	if err := fits(finish, maxFinishBytes, "the output is larger than a message may be"); err != nil {
		return refused(finish, err.Error())
	}
	return finish
}

func failed(failure *Failure) *pb.Finish {
	return &pb.Finish{Outcome: &pb.Finish_Failed{Failed: failure.report()}}
}

func interrupted() *pb.Finish {
	return failed(&Failure{Code: "interrupted", Message: "stopped before it was done"})
}

// refused is reported in place of a result that cannot be. A failure that may be tried again stays one.
func refused(finish *pb.Finish, why string) *pb.Finish {
	return failed(&Failure{Code: "output.invalid", Message: why, Permanent: !finish.GetFailed().GetRetryable()})
}
