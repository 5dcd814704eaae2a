package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// More would be dropped before the driver has read them.
const riverEvents = 100_000

type noopArgs struct {
	Payload string `json:"payload"`
}

func (noopArgs) Kind() string { return "noop" }

type noopWorker struct {
	river.WorkerDefaults[noopArgs]
}

func (noopWorker) Work(context.Context, *river.Job[noopArgs]) error { return nil }

type riverSession struct {
	client *river.Client[pgx.Tx]
}

func openRiver(o options, done func(int)) (session, error) {
	context := context.Background()
	config, err := pgxpool.ParseConfig(o.address)
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(o.connections + 10)
	pool, err := pgxpool.NewWithConfig(context, config)
	if err != nil {
		return nil, err
	}
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(context, rivermigrate.DirectionUp, nil); err != nil {
		return nil, err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, noopWorker{})
	client, err := river.NewClient(driver, &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: o.workers}},
		Workers: workers,
		// 100 ms and 1 s unless told.
		FetchCooldown:     time.Millisecond,
		FetchPollInterval: 10 * time.Millisecond,
		JobTimeout:        -1,
	})
	if err != nil {
		return nil, err
	}
	events, _ := client.SubscribeConfig(&river.SubscribeConfig{
		ChanSize: riverEvents,
		Kinds:    []river.EventKind{river.EventKindJobCompleted},
	})
	go func() {
		for range events {
			done(1)
		}
	}()
	return &riverSession{client}, client.Start(context)
}

func (r *riverSession) submit(_, n int) error {
	if n == 1 {
		_, err := r.client.Insert(context.Background(), noopArgs{payload}, nil)
		return err
	}
	jobs := make([]river.InsertManyParams, n)
	for index := range jobs {
		jobs[index].Args = noopArgs{payload}
	}
	_, err := r.client.InsertManyFast(context.Background(), jobs)
	return err
}
