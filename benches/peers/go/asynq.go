package main

import (
	"context"
	"time"

	"github.com/hibiken/asynq"
)

// A server takes its tasks one after the other, however many it runs at once: more servers take more.
const asynqConcurrency = 64

type asynqSession struct {
	client *asynq.Client
}

func openAsynq(o options, done func(int)) (session, error) {
	handler := asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		done(1)
		return nil
	})
	for range o.workers {
		server := asynq.NewServer(asynq.RedisClientOpt{Addr: o.address, PoolSize: asynqConcurrency}, asynq.Config{
			Concurrency: asynqConcurrency,
			// An idle server sleeps between looks, a second unless told.
			TaskCheckInterval: time.Millisecond,
			LogLevel:          asynq.ErrorLevel,
		})
		if err := server.Start(handler); err != nil {
			return nil, err
		}
	}
	client := asynq.NewClient(asynq.RedisClientOpt{Addr: o.address, PoolSize: o.connections})
	return &asynqSession{client}, nil
}

func (a *asynqSession) submit(_, n int) error {
	for range n {
		if _, err := a.client.Enqueue(asynq.NewTask("noop", []byte(payload))); err != nil {
			return err
		}
	}
	return nil
}
