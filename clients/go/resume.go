package jobwire

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

// Outcomes of a replay that are remembered to leave out repeats, should it break before its end.
const maxRemembered = 100_000

type outcome struct {
	jobID string
	run   int32
}

// resume is what a watch asked, and how far it came.
type resume struct {
	asked  *pb.WatchResultsRequest
	cursor string
	// Outcomes from before the watch are still being sent, so a cursor would skip the rest of them.
	replaying bool
	replayed  map[outcome]struct{}
	// Under until_all_done: ids of which an outcome came. Another may follow, of a later run.
	seen map[string]struct{}
}

func newResume(request *pb.WatchResultsRequest) *resume {
	return &resume{
		asked:     cloned(request),
		replaying: request.GetStart() == nil && (request.GetIncludeExisting() || request.GetUntilAllDone()),
		replayed:  map[outcome]struct{}{},
		seen:      map[string]struct{}{},
	}
}

// request goes on from here. elapsed: since the first one was sent.
func (r *resume) request(elapsed time.Duration) *pb.WatchResultsRequest {
	request := proto.CloneOf(r.asked)
	if lookback, ok := request.Start.(*pb.WatchResultsRequest_Lookback); r.cursor != "" {
		request.Start = &pb.WatchResultsRequest_AfterCursor{AfterCursor: r.cursor}
		request.IncludeExisting = false
	} else if ok {
		// The same moment in the past as at the first try.
		moment := lookback.Lookback.AsDuration() + elapsed.Truncate(time.Second) + time.Second
		lookback.Lookback = durationpb.New(moment)
	}
	return request
}

// note takes a message down. False if the caller has had it already.
func (r *resume) note(message *pb.WatchResultsResponse) bool {
	fresh := true
	if job := message.GetFinished(); job != nil {
		fresh = r.noteFinished(job)
	} else if message.GetCheckpoint().GetCaughtUp() {
		r.replaying = false
		clear(r.replayed)
	}
	if !r.replaying && message.Cursor != "" {
		r.cursor = message.Cursor
	}
	return fresh
}

func (r *resume) noteFinished(job *pb.Job) bool {
	if r.ends() {
		r.seen[job.JobId] = struct{}{}
	}
	if !r.replaying {
		return true
	}
	key := outcome{job.JobId, job.Run}
	if _, known := r.replayed[key]; known {
		return false
	}
	if len(r.replayed) < maxRemembered {
		r.replayed[key] = struct{}{}
	}
	return true
}

// drop leaves out a job that was removed after its outcome had come. False if the error tells of something else.
func (r *resume) drop(e *Error) bool {
	removed := e.Metadata["job_id"]
	_, seen := r.seen[removed]
	if e.Reason != "JOB_NOT_FOUND" || !seen || !slices.Contains(r.asked.GetFilter().GetJobIds(), removed) {
		return false
	}
	r.asked.Filter.JobIds = slices.DeleteFunc(r.asked.Filter.JobIds, func(id string) bool { return id == removed })
	return true
}

// fulfilled: nothing is left to wait for.
func (r *resume) fulfilled() bool { return r.ends() && len(r.asked.GetFilter().GetJobIds()) == 0 }

// ends: the server ends this stream with OK when it has sent everything.
func (r *resume) ends() bool { return r.asked.GetUntilAllDone() }

// maxSilence is three heartbeats: longer without any message means that the connection is lost.
func (r *resume) maxSilence() time.Duration {
	asked := 15 * time.Second
	if interval := r.asked.GetHeartbeatInterval(); interval != nil {
		asked = interval.AsDuration()
	}
	return 3 * min(max(asked, time.Second), time.Minute)
}
