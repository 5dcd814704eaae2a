package jobwire

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

func TestSubmitIsRepeatedWithTheSameRequestID(t *testing.T) {
	f := serve(t)
	f.submitErrors = []error{bare(codes.Unavailable), own(codes.ResourceExhausted, "QUEUE_FULL")}
	if _, err := f.client(t).Submit(t.Context(), &pb.SubmitRequest{}); err != nil {
		t.Fatal(err)
	}
	if len(f.submitted) != 3 {
		t.Fatalf("%d submits", len(f.submitted))
	}
	for _, request := range f.submitted {
		if request.RequestId == "" || request.RequestId != f.submitted[0].RequestId {
			t.Errorf("request_id %q", request.RequestId)
		}
	}
}

func TestACallThatTookTooLongIsRepeatedTwice(t *testing.T) {
	f := serve(t)
	f.submitErrors = []error{bare(codes.DeadlineExceeded), bare(codes.DeadlineExceeded)}
	if _, err := f.client(t).Submit(t.Context(), nil); err != nil || len(f.submitted) != 3 {
		t.Fatal(err, len(f.submitted))
	}
	if f.submitted[0].RequestId != f.submitted[2].RequestId {
		t.Error(f.submitted)
	}
	for range 4 {
		f.submitErrors = append(f.submitErrors, own(codes.DeadlineExceeded, "DEADLINE_EXCEEDED"))
	}
	if _, err := f.client(t).Submit(t.Context(), nil); Reason(err) != "DEADLINE_EXCEEDED" || len(f.submitted) != 6 {
		t.Error(err, len(f.submitted))
	}
	f.retryError = bare(codes.DeadlineExceeded)
	if _, err := f.client(t).Retry(t.Context(), &pb.RetryJobRequest{}); err == nil || f.retries != 1 {
		t.Error(err, f.retries)
	}
}

func TestTheDeadlineOfTheCallerIsFinal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	tries := 0
	_, err := call(ctx, time.Minute, true, 0, func(ctx context.Context, _ int, _ ...grpc.CallOption) (int, error) {
		tries++
		<-ctx.Done()
		return 0, ctx.Err()
	})
	if !errors.Is(err, context.DeadlineExceeded) || tries != 1 {
		t.Error(err, tries)
	}
}

func TestNoRequestIsAnEmptyOne(t *testing.T) {
	f := serve(t)
	f.streams = [][]any{{own(codes.OutOfRange, "CURSOR_EXPIRED")}}
	client := f.client(t)
	for _, err := range client.List(t.Context(), nil) {
		if err != nil {
			t.Error(err)
		}
	}
	for _, err := range client.Watch(t.Context(), nil) {
		if Reason(err) != "CURSOR_EXPIRED" {
			t.Error(err)
		}
	}
	if err := client.Delete(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestRunAsksForAnOutputThatWasLeftOut(t *testing.T) {
	f := serve(t)
	output := &pb.Payload{Omitted: true, SizeBytes: 5}
	f.submitReply = &pb.SubmitResponse{Done: true, Job: &pb.Job{JobId: "a", Output: output}}
	if job, err := f.client(t).Run(t.Context(), nil); err != nil || f.polls != 3 || job.Output.GetOmitted() {
		t.Error(job, err, f.polls)
	}
	f.submitReply.Job.Output = nil
	if _, err := f.client(t).Run(t.Context(), nil); err != nil || f.polls != 3 {
		t.Error(err, f.polls)
	}
}

func TestRefusalsArePassedOnAtOnce(t *testing.T) {
	for _, refused := range []error{
		own(codes.InvalidArgument, "INVALID_FIELD"),
		bare(codes.ResourceExhausted),
		refusal(codes.ResourceExhausted, "QUEUE_FULL", "proxy.example", time.Millisecond),
		refusal(codes.ResourceExhausted, "QUEUE_FULL", domain, 31*time.Second),
		bare(codes.Internal),
	} {
		f := serve(t)
		f.submitErrors = []error{refused}
		if _, err := f.client(t).Submit(t.Context(), &pb.SubmitRequest{RequestId: "mine"}); err == nil {
			t.Error("no error")
		}
		if len(f.submitted) != 1 || f.submitted[0].RequestId != "mine" {
			t.Errorf("after %v: %v", refused, f.submitted)
		}
	}
}

func TestErrorsHaveTheirDetails(t *testing.T) {
	f := serve(t)
	f.submitErrors = []error{refusal(codes.InvalidArgument, "INVALID_FIELD", domain, 2*time.Second)}
	_, err := f.client(t).Submit(t.Context(), nil)
	var e *Error
	if !errors.As(err, &e) || Reason(err) != "INVALID_FIELD" || e.Code != codes.InvalidArgument {
		t.Fatal(err)
	}
	if e.Metadata["key"] != "value" || *e.RetryDelay != 2*time.Second || e.Fields[0] != (Field{"spec.kind", "is missing"}) {
		t.Errorf("%+v", e)
	}
	if e.Error() != "no (INVALID_FIELD)" {
		t.Error(e)
	}
}

func TestAContextThatEndsAPauseHasItsCode(t *testing.T) {
	for cause, code := range map[error]codes.Code{
		context.DeadlineExceeded: codes.DeadlineExceeded,
		context.Canceled:         codes.Canceled,
	} {
		if e := toError(t.Context(), cause); e.Code != code || !errors.Is(e, cause) {
			t.Errorf("%v is %v", cause, e.Code)
		}
	}
}

func TestRetryIsNotSentTwiceButDeleteIs(t *testing.T) {
	f := serve(t)
	client := f.client(t)
	if _, err := client.Retry(t.Context(), &pb.RetryJobRequest{}); err == nil || f.retries != 1 {
		t.Error(err, f.retries)
	}
	if err := client.Delete(t.Context(), &pb.DeleteJobRequest{}); err != nil {
		t.Fatal(err)
	}
	if f.deleted[0].AllowMissing || !f.deleted[1].AllowMissing {
		t.Error(f.deleted)
	}
}

func TestResultIsPolledUntilTheJobHasEnded(t *testing.T) {
	f := serve(t)
	client := f.client(t)
	if reply, err := client.Result(t.Context(), "a", 0); err != nil || reply.Done || f.polls != 1 {
		t.Error(reply, err)
	}
	if reply, err := client.Result(t.Context(), "a", Forever); err != nil || !reply.Done || f.polls != 3 {
		t.Error(reply, err)
	}
}

func TestTheContextEndsACall(t *testing.T) {
	f := serve(t)
	for range maxTries {
		f.submitErrors = append(f.submitErrors, refusal(codes.Unavailable, "DRAINING", domain, 9*time.Second))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := f.client(t).Submit(ctx, &pb.SubmitRequest{}); err == nil || len(f.submitted) != 1 {
		t.Error(err, len(f.submitted))
	}
}

func TestPagesAreListedToTheEnd(t *testing.T) {
	pages := 0
	for _, err := range serve(t).client(t).List(t.Context(), &pb.ListJobsRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		pages++
	}
	if pages != 3 {
		t.Error(pages)
	}
}

func untilAllDone(ids ...string) *pb.WatchResultsRequest {
	return &pb.WatchResultsRequest{Filter: &pb.JobFilter{JobIds: ids}, UntilAllDone: true}
}

func TestAWatchGoesOnFromItsCursorAndEndsWhenAllIsDone(t *testing.T) {
	f := serve(t)
	f.streams = [][]any{
		{own(codes.Unavailable, "STREAM_ROTATED")},
		{own(codes.DeadlineExceeded, "DEADLINE_EXCEEDED")},
		{finished("a", "c0", 1), caughtUp("c1"), bare(codes.Unknown)},
		{finished("b", "c2", 1), own(codes.ResourceExhausted, "WATCH_STALLED")},
		{finished("c", "c3", 1)},
	}
	var seen, cursors []string
	var asked []int
	for message, err := range f.client(t).Watch(t.Context(), untilAllDone("a", "b", "c")) {
		if err != nil {
			t.Fatal(err)
		}
		if job := message.GetFinished(); job != nil {
			seen = append(seen, job.JobId)
		}
	}
	for _, request := range f.watched {
		cursors = append(cursors, request.GetAfterCursor())
		asked = append(asked, len(request.Filter.JobIds))
	}
	if !reflect.DeepEqual(seen, []string{"a", "b", "c"}) ||
		!reflect.DeepEqual(cursors, []string{"", "", "", "c1", "c2"}) || !reflect.DeepEqual(asked, []int{3, 3, 3, 3, 3}) {
		t.Error(seen, cursors, asked)
	}
}

func TestAWatchHearsOfALaterRunAfterABreak(t *testing.T) {
	f := serve(t)
	f.streams = [][]any{
		{finished("a", "c0", 1), own(codes.Unavailable, "STREAM_ROTATED")},
		{finished("a", "c0", 1), finished("a", "c1", 2), caughtUp("c1"), own(codes.Unavailable, "STREAM_ROTATED")},
		{finished("a", "c2", 3)},
	}
	var runs []int32
	for message, err := range f.client(t).Watch(t.Context(), untilAllDone("a")) {
		if err != nil {
			t.Fatal(err)
		}
		if job := message.GetFinished(); job != nil {
			runs = append(runs, job.Run)
		}
	}
	if !reflect.DeepEqual(runs, []int32{1, 2, 3}) {
		t.Error(runs)
	}
	for _, request := range f.watched {
		if !reflect.DeepEqual(request.Filter.JobIds, []string{"a"}) {
			t.Error(request)
		}
	}
}

func TestAWatchLeavesOutWhatWasRemovedAfterItsOutcome(t *testing.T) {
	f := serve(t)
	f.streams = [][]any{
		{finished("a", "c0", 1), finished("b", "c0", 1), caughtUp("c0"), bare(codes.Unavailable)},
		{notFound("a")},
		{notFound("b")},
	}
	request := untilAllDone("a", "b", "a")
	for _, err := range f.client(t).Watch(t.Context(), request) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var asked [][]string
	for _, request := range f.watched {
		asked = append(asked, request.Filter.JobIds)
	}
	if !reflect.DeepEqual(asked, [][]string{{"a", "b", "a"}, {"a", "b", "a"}, {"b"}}) || len(request.Filter.JobIds) != 3 {
		t.Error(asked, request)
	}
}

func TestAWatchFailsForAnUnknownJob(t *testing.T) {
	f := serve(t)
	f.streams = [][]any{{finished("a", "c0", 1), bare(codes.Unavailable)}, {notFound("b")}}
	var last error
	for _, err := range f.client(t).Watch(t.Context(), untilAllDone("a", "b")) {
		last = err
	}
	if Reason(last) != "JOB_NOT_FOUND" || len(f.watched) != 2 {
		t.Error(last, f.watched)
	}
}

func TestAReplayThatBreaksBeginsAgainWithoutRepeats(t *testing.T) {
	f := serve(t)
	f.streams = [][]any{
		{finished("a", "c5", 1), bare(codes.Unavailable)},
		{finished("a", "c5", 1), finished("a", "c6", 2), finished("b", "c6", 1), caughtUp("c6")},
		{own(codes.OutOfRange, "CURSOR_EXPIRED")},
	}
	var seen []outcome
	var last error
	for message, err := range f.client(t).Watch(t.Context(), &pb.WatchResultsRequest{IncludeExisting: true}) {
		if job := message.GetFinished(); job != nil {
			seen = append(seen, outcome{job.JobId, job.Run})
		}
		last = err
	}
	if !reflect.DeepEqual(seen, []outcome{{"a", 1}, {"a", 2}, {"b", 1}}) || Reason(last) != "CURSOR_EXPIRED" {
		t.Error(seen, last)
	}
	if w := f.watched; !w[0].IncludeExisting || !w[1].IncludeExisting || w[2].IncludeExisting {
		t.Error(w)
	}
}

func TestASilentServerIsLeftForANewStream(t *testing.T) {
	f := serve(t)
	request := untilAllDone("a")
	request.HeartbeatInterval = durationpb.New(time.Second)
	time.AfterFunc(time.Second, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.streams = [][]any{{finished("a", "c1", 1)}}
	})
	messages := 0
	for _, err := range f.client(t).Watch(t.Context(), request) {
		if err != nil {
			t.Fatal(err)
		}
		messages++
	}
	if messages != 1 || len(f.watched) != 2 {
		t.Error(messages, len(f.watched))
	}
}

func TestTheContextEndsAWatch(t *testing.T) {
	f := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var last error
	for _, err := range f.client(t).Watch(ctx, &pb.WatchResultsRequest{}) {
		last = err
	}
	if !errors.Is(last, context.DeadlineExceeded) {
		t.Error(last)
	}
}

func TestLookingBackKeepsTheMoment(t *testing.T) {
	lookback := &pb.WatchResultsRequest_Lookback{Lookback: durationpb.New(time.Minute)}
	r := newResume(&pb.WatchResultsRequest{Start: lookback})
	if got := r.request(30 * time.Second).GetLookback().Seconds; got != 91 {
		t.Error(got)
	}
}

func TestAddresses(t *testing.T) {
	for given, full := range map[string]string{
		"localhost": "localhost:50051", " http://127.0.0.1:80/": "127.0.0.1:80", "[::1]:7000": "[::1]:7000",
		"[::1]": "[::1]:50051",
	} {
		if got, err := target(given); err != nil || got != full {
			t.Error(given, got, err)
		}
	}
	for _, wrong := range []string{"", "https://a:1", "a:0", "a:99999", "http://a:1/path", "u:p@a:1"} {
		if got, err := target(wrong); err == nil {
			t.Error(wrong, got)
		}
	}
}

func TestValuesComeBackAsTheyWere(t *testing.T) {
	type page struct {
		Number int64
		Title  string
	}
	payload, err := Encode(page{1 << 60, "é"})
	if err != nil {
		t.Fatal(err)
	}
	var read page
	if err := Decode(payload, &read); err != nil || read != (page{1 << 60, "é"}) {
		t.Error(read, err)
	}
	value, _ := structpb.NewValue(map[string]any{"Number": 3})
	if err := Decode(&pb.Payload{Body: &pb.Payload_Json{Json: value}}, &read); err != nil || read.Number != 3 {
		t.Error(read, err)
	}
	text := &pb.Payload{Body: &pb.Payload_Text{Text: "a,b"}, ContentType: "text/csv"}
	var line string
	var bytes []byte
	if Decode(text, &line) != nil || line != "a,b" || Decode(text, &bytes) != nil || string(bytes) != "a,b" {
		t.Error(line, bytes)
	}
	if Decode(text, &read) == nil {
		t.Error("text/csv was read as JSON")
	}
	var nothing any
	if err := Decode(nil, &nothing); err != nil || nothing != nil {
		t.Error(nothing, err)
	}
	if err := Decode(nil, &bytes); err != nil || bytes != nil {
		t.Error(bytes, err)
	}
}

func TestABodyThatWasLeftOutIsNotRead(t *testing.T) {
	omitted := &pb.Payload{Omitted: true, SizeBytes: 5}
	var value any
	var bytes []byte
	for _, into := range []any{&value, &bytes} {
		if err := Decode(omitted, into); err == nil || !strings.Contains(err.Error(), "5 bytes") {
			t.Error(err)
		}
	}
	var payload *pb.Payload
	if err := Decode(omitted, &payload); err != nil || payload != omitted {
		t.Error(payload, err)
	}
}
