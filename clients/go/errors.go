package jobwire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The domain of the errors that jobwire itself gives. Others come from libraries and proxies.
const domain = "jobwire.v1"

// Error says why a call, or a stream, failed.
type Error struct {
	// Code is used by libraries and proxies as well: tell causes apart by Reason.
	Code codes.Code
	// Message is for people; not part of the contract.
	Message string
	// Reason is that of the contract, such as JOB_NOT_FOUND. Empty if the error is not jobwire's own.
	Reason string
	// Metadata is what belongs to the reason, such as a limit that was exceeded.
	Metadata map[string]string
	// Fields of the request that were refused.
	Fields []Field
	// RetryDelay is when the server wants to be asked again. Nil if it does not say.
	RetryDelay *time.Duration

	cause error
}

// Field is a field of a request that was refused.
type Field struct {
	Path, Why string
}

func (e *Error) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("%s (%s)", e.Message, e.Reason)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Code)
}

// Unwrap gives what the call returned, or context.Canceled and context.DeadlineExceeded if the caller's context ended it.
func (e *Error) Unwrap() error { return e.cause }

// Reason is that of the contract, such as JOB_NOT_FOUND; empty if the error is not jobwire's own.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// toError reads the details that jobwire adds to its statuses.
func toError(ctx context.Context, err error) *Error {
	if e, ok := err.(*Error); ok {
		e.cause = cmp.Or(ctx.Err(), e.cause)
		return e
	}
	s, ok := status.FromError(err)
	if !ok {
		// The caller's context ended a pause, not a call.
		s = status.FromContextError(err)
	}
	e := &Error{Code: s.Code(), Message: s.Message(), cause: cmp.Or(ctx.Err(), err)}
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == domain {
				e.Reason, e.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.RetryInfo:
			if detail.RetryDelay != nil {
				delay := detail.RetryDelay.AsDuration()
				e.RetryDelay = &delay
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				e.Fields = append(e.Fields, Field{Path: violation.Field, Why: violation.Description})
			}
		}
	}
	return e
}

func (e *Error) delay() time.Duration {
	if e.RetryDelay == nil {
		return 0
	}
	return *e.RetryDelay
}

// repeatable tells whether the same request may be sent again. harmless: twice does no more than once. A deadline is that
// of one try: the caller's own is seen to by the context.
func (e *Error) repeatable(harmless bool) bool {
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return harmless
	case codes.ResourceExhausted: // A plain refusal: nothing was done.
		return e.Reason != "" && e.RetryDelay != nil
	default:
		return false
	}
}

// resumable tells whether a new stream may bring what this error cut off. Codes alone do not tell: libraries and proxies
// make UNKNOWN, INTERNAL and CANCELLED of a broken connection, and then there is no reason of the contract.
func (e *Error) resumable() bool {
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.ResourceExhausted:
		return e.Reason != ""
	case codes.Unknown, codes.Internal, codes.Canceled:
		return e.Reason == ""
	default:
		return false
	}
}
