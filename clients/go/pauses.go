package jobwire

import (
	"context"
	"math/rand/v2"
	"time"
)

// pauses grow from first to most, with full jitter, so that many clients do not come back in step.
type pauses struct {
	first, most, now time.Duration
}

func newPauses(first, most time.Duration) *pauses {
	return &pauses{first: first, most: most, now: first}
}

// next is what the server asks for, plus the jitter.
func (p *pauses) next(asked time.Duration) time.Duration {
	pause := asked + time.Duration(rand.Float64()*float64(p.now))
	p.now = min(2*p.now, p.most)
	return pause
}

// reset begins anew, after a success.
func (p *pauses) reset() { p.now = p.first }

// sleep returns early, with the error of the context, when that ends.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}
