package jobwire

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

const (
	welcomeTimeout = 15 * time.Second
	goodbyeTimeout = time.Second
)

// session is one stream of WorkerService.Work: what goes out on it, and when it counts as lost.
type session struct {
	welcome *pb.WorkerWelcome
	// Closed when this stream has ended, or is about to; then err says why, if it has.
	leaving chan struct{}
	leave   func(*Error)
	err     *Error

	stream   pb.WorkerService_WorkClient
	watchdog *time.Timer
	silence  time.Duration
	cancel   context.CancelCauseFunc
	// Closed when nothing more comes over this stream.
	ended chan struct{}
	wake  chan struct{}

	mu      sync.Mutex
	closing bool
	beatDue bool
	// The leases of the heartbeat that is not answered yet. Nil if none is under way.
	naming []string
	// A heartbeat was answered.
	answered bool
	// One message for each key, the newest: what is not sent yet is replaced, so it is bounded by what is held.
	outbox map[string]*pb.WorkRequest
	order  []string
}

// openSession begins a session, or fails if the server does not welcome the worker.
func openSession(ctx context.Context, rpc pb.WorkerServiceClient, hello *pb.WorkerHello) (*session, *Error) {
	ctx, cancel := context.WithCancelCause(ctx)
	silent := &Error{Code: codes.DeadlineExceeded, Message: "the server has been silent for too long"}
	s := &session{
		leaving:  make(chan struct{}),
		silence:  welcomeTimeout,
		cancel:   cancel,
		ended:    make(chan struct{}),
		wake:     make(chan struct{}, 1),
		outbox:   map[string]*pb.WorkRequest{},
		watchdog: time.AfterFunc(welcomeTimeout, func() { cancel(silent) }),
	}
	var once sync.Once
	s.leave = func(err *Error) {
		once.Do(func() {
			s.err = err
			close(s.leaving)
		})
	}
	stream, err := rpc.Work(ctx)
	if err == nil {
		s.stream = stream
		// What a failed Send means is told by Recv.
		_ = stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}})
		var first *pb.WorkResponse
		if first, err = s.receive(ctx); err == nil {
			if s.welcome = first.GetWelcome(); s.welcome != nil {
				return s, nil
			}
			err = &Error{Code: codes.Unavailable, Message: "the server began the session without its welcome"}
		}
	}
	s.watchdog.Stop()
	cancel(nil)
	return nil, toError(ctx, err)
}

// start begins to send, to beat with what held says, and to hand messages on.
func (s *session) start(ctx context.Context, take func(*session, *pb.WorkResponse), held func() *pb.WorkerHeartbeat) {
	interval := s.welcome.GetHeartbeatInterval().AsDuration()
	if interval <= 0 {
		interval = 5 * time.Second
	}
	s.silence = 3 * interval
	go s.send(interval, held)
	go func() {
		defer close(s.ended)
		for {
			message, err := s.receive(ctx)
			if err != nil {
				s.watchdog.Stop()
				s.cancel(nil)
				s.leave(s.loss(ctx, err))
				return
			}
			take(s, message)
		}
	}()
}

// loss is why the stream has ended. Nil after a goodbye.
func (s *session) loss(ctx context.Context, err error) *Error {
	if s.isClosing() {
		return nil
	}
	return toError(ctx, err)
}

// post sends a message soon, in order, in place of an unsent one with the same key.
func (s *session) post(key string, message *pb.WorkRequest) {
	s.mu.Lock()
	if _, waiting := s.outbox[key]; !waiting {
		s.order = append(s.order, key)
	}
	s.outbox[key] = message
	s.mu.Unlock()
	s.nudge()
}

// close says goodbye: what was posted is sent first, and the server ends the stream once it has answered. To cancel it
// sooner would drop what has not left yet.
func (s *session) close() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.nudge()
	select {
	case <-s.ended:
	case <-time.After(goodbyeTimeout):
	}
	s.cancel(nil)
}

func (s *session) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *session) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// beat sends a heartbeat soon: after the answer to the one that is under way, so that leases share one.
func (s *session) beat() {
	s.mu.Lock()
	s.beatDue = true
	s.mu.Unlock()
	s.nudge()
}

// named are the leases of the heartbeat that was answered.
func (s *session) named() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := s.naming
	s.naming, s.answered = nil, true
	s.nudge()
	return ids
}

// useful tells whether the server has taken what was sent: all that is held comes before the first heartbeat.
func (s *session) useful() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

// mayBeat takes note that a heartbeat is under way, if one is due and may go. None goes with the goodbye: its leases may
// be named on another stream by now.
func (s *session) mayBeat() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	may := s.beatDue && s.naming == nil && !s.closing
	if may {
		s.beatDue, s.naming = false, []string{}
	}
	return may
}

func (s *session) send(interval time.Duration, held func() *pb.WorkerHeartbeat) {
	beats := time.NewTicker(interval)
	defer beats.Stop()
	for {
		if s.mayBeat() {
			// Last: it does not name a lease whose result waits here, and must not overtake that.
			beat := held()
			s.mu.Lock()
			s.naming = append(s.naming, beat.LeaseIds...)
			s.mu.Unlock()
			s.post("heartbeat", &pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: beat}})
		}
		if message, more := s.next(); more {
			if s.stream.Send(message) != nil {
				return // Recv tells why.
			}
			continue
		}
		if s.isClosing() {
			_ = s.stream.CloseSend()
			return
		}
		select {
		case <-s.wake:
		case <-s.stream.Context().Done():
			return
		case <-beats.C:
			s.beat()
		}
	}
}

// next takes the oldest message that waits.
func (s *session) next() (*pb.WorkRequest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == 0 {
		return nil, false
	}
	key := s.order[0]
	s.order = s.order[1:]
	message := s.outbox[key]
	delete(s.outbox, key)
	return message, true
}

func (s *session) receive(ctx context.Context) (*pb.WorkResponse, error) {
	s.watchdog.Reset(s.silence)
	message, err := s.stream.Recv()
	if err != nil {
		var silent *Error
		if cause, ok := context.Cause(s.stream.Context()).(*Error); ok {
			silent = cause
		}
		switch {
		case silent != nil:
			return nil, silent
		case errors.Is(err, io.EOF):
			return nil, &Error{Code: codes.Unavailable, Message: "the server ended the session"}
		}
		return nil, err
	}
	return message, nil
}
