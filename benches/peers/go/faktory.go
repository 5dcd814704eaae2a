package main

import (
	"fmt"
	"log"

	"github.com/contribsys/faktory/client"
)

type faktory struct {
	submitters []*client.Client
}

func openFaktory(o options, done func(int)) (session, error) {
	server := client.DefaultServer()
	server.Address = o.address
	session := &faktory{}
	for range o.connections {
		connection, err := client.Dial(server, "")
		if err != nil {
			return nil, err
		}
		session.submitters = append(session.submitters, connection)
	}
	// Connections made from here on say that they are a worker's.
	client.RandomProcessWid = client.RandomJid()
	for range o.workers {
		connection, err := client.Dial(server, "")
		if err != nil {
			return nil, err
		}
		go func() { log.Fatal(workFaktory(connection, done)) }()
	}
	return session, nil
}

func (f *faktory) submit(connection, n int) error {
	submitter := f.submitters[connection]
	if n == 1 {
		return submitter.Push(client.NewJob("noop", payload))
	}
	jobs := make([]*client.Job, n)
	for index := range jobs {
		jobs[index] = client.NewJob("noop", payload)
	}
	refused, err := submitter.PushBulk(jobs)
	if err == nil && len(refused) > 0 {
		err = fmt.Errorf("%d jobs refused: %v", len(refused), refused)
	}
	return err
}

func workFaktory(connection *client.Client, done func(int)) error {
	for {
		job, err := connection.Fetch("default")
		if err != nil {
			return err
		}
		if job == nil {
			continue
		}
		if err := connection.Ack(job.Jid); err != nil {
			return err
		}
		done(1)
	}
}
