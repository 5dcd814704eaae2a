package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// How long the last jobs may take to end once nothing more is submitted.
const drainTimeout = 60 * time.Second

// The first calls warm up connections, caches and prepared statements. They are not counted.
const warmUp = 50

// A closed loop: a job is submitted when another one has ended.
type loop struct {
	room      *semaphore.Weighted
	submitted atomic.Int64
	ended     atomic.Int64
	// All submitters have stopped.
	closed  atomic.Bool
	drained chan struct{}
	once    sync.Once
}

func newLoop(outstanding int) *loop {
	return &loop{room: semaphore.NewWeighted(int64(outstanding)), drained: make(chan struct{})}
}

func (l *loop) done(n int) {
	l.ended.Add(int64(n))
	l.room.Release(int64(n))
	l.check()
}

func (l *loop) check() {
	if l.closed.Load() && l.ended.Load() == l.submitted.Load() {
		l.once.Do(func() { close(l.drained) })
	}
}

// The time runs from the first submit until the end of the last job was seen.
func (l *loop) run(peer session, o options, length time.Duration) (map[string]any, error) {
	if o.batch > o.outstanding {
		return nil, errors.New("a batch does not fit into what may be outstanding")
	}
	start := time.Now()
	deadline, cancel := context.WithDeadline(context.Background(), start.Add(length))
	defer cancel()
	submitters, deadline := errgroup.WithContext(deadline)
	for connection := range o.connections {
		submitters.Go(func() error {
			for l.room.Acquire(deadline, int64(o.batch)) == nil {
				l.submitted.Add(int64(o.batch))
				if err := peer.submit(connection, o.batch); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := submitters.Wait(); err != nil {
		return nil, err
	}
	l.closed.Store(true)
	l.check()
	select {
	case <-l.drained:
	case <-time.After(drainTimeout):
		return nil, fmt.Errorf("only %d of %d jobs were seen to end", l.ended.Load(), l.submitted.Load())
	}
	return map[string]any{"jobs": l.ended.Load(), "seconds": time.Since(start).Seconds()}, nil
}

// The time from the call of submit until the job was acknowledged and its end was seen, with no other job about.
func oneByOne(peer session, ended <-chan struct{}, length time.Duration) (map[string]any, error) {
	var samples []time.Duration
	var start time.Time
	for count := 0; ; count++ {
		if count == warmUp {
			start = time.Now()
		}
		if count > warmUp && time.Since(start) > length {
			break
		}
		begin := time.Now()
		if err := peer.submit(0, 1); err != nil {
			return nil, err
		}
		select {
		case <-ended:
		case <-time.After(drainTimeout):
			return nil, errors.New("the end of a job was not seen")
		}
		if count >= warmUp {
			samples = append(samples, time.Since(begin))
		}
	}
	samples = sorted(samples)
	return map[string]any{
		"samples": len(samples),
		"p50_us":  percentile(samples, 0.50),
		"p99_us":  percentile(samples, 0.99),
	}, nil
}
