package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log"
)

// Packets of the binary protocol.
const (
	canDo       = 1
	preSleep    = 4
	noop        = 6
	submitJob   = 7
	jobCreated  = 8
	grabJob     = 9
	noJob       = 10
	jobAssign   = 11
	workDone    = 13
	submitJobBg = 18
)

// The binary protocol itself, with the packets of a batch in one write, as the C library's tasks do it.
type gearmand struct {
	kind       uint32
	submitters []*gearmanSubmitter
}

type gearmanSubmitter struct {
	stream *bufio.ReadWriter
	// One for each job that the server has acknowledged.
	created chan struct{}
}

// The server passes the worker's result on to the submitter.
func openGearmanForeground(o options, done func(int)) (session, error) {
	return openGearman(o, submitJob, done, func(int) {})
}

// Nothing comes back: the worker counts.
func openGearmanBackground(o options, done func(int)) (session, error) {
	return openGearman(o, submitJobBg, func(int) {}, done)
}

func openGearman(o options, kind uint32, submitterSaw, workerSaw func(int)) (session, error) {
	for range o.workers {
		stream, err := dial(o.address)
		if err != nil {
			return nil, err
		}
		go func() { log.Fatal(workGearman(stream, o.prefetch, workerSaw)) }()
	}
	session := &gearmand{kind: kind}
	for range o.connections {
		stream, err := dial(o.address)
		if err != nil {
			return nil, err
		}
		submitter := &gearmanSubmitter{stream: stream, created: make(chan struct{}, o.batch)}
		session.submitters = append(session.submitters, submitter)
		go func() { log.Fatal(submitter.read(submitterSaw)) }()
	}
	return session, nil
}

func (g *gearmand) submit(connection, n int) error {
	submitter := g.submitters[connection]
	for range n {
		if err := writePacket(submitter.stream, g.kind, "noop\x00\x00"+payload); err != nil {
			return err
		}
	}
	if err := submitter.stream.Flush(); err != nil {
		return err
	}
	for range n {
		<-submitter.created
	}
	return nil
}

func (s *gearmanSubmitter) read(done func(int)) error {
	for {
		kind, _, err := readPacket(s.stream.Reader)
		switch {
		case err != nil:
			return err
		case kind == jobCreated:
			s.created <- struct{}{}
		case kind == workDone:
			done(1)
		default:
			return fmt.Errorf("submitter: packet %d", kind)
		}
	}
}

func workGearman(stream *bufio.ReadWriter, prefetch int, done func(int)) error {
	if err := writePacket(stream, canDo, "noop"); err != nil {
		return err
	}
	for {
		for range prefetch {
			if err := writePacket(stream, grabJob, ""); err != nil {
				return err
			}
		}
		if err := stream.Flush(); err != nil {
			return err
		}
		jobs := 0
		for answers := 0; answers < prefetch; {
			kind, body, err := readPacket(stream.Reader)
			if err != nil {
				return err
			}
			switch kind {
			case noop:
				// Left over from a sleep.
			case noJob:
				answers++
			case jobAssign:
				answers++
				jobs++
				// Handle, function, payload. The result is the payload.
				handle := body[:indexZero(body)+1]
				if err := writePacket(stream, workDone, string(handle)+payload); err != nil {
					return err
				}
			default:
				return fmt.Errorf("worker: packet %d", kind)
			}
		}
		if jobs > 0 {
			done(jobs)
			continue
		}
		if err := writePacket(stream, preSleep, ""); err != nil {
			return err
		}
		if err := stream.Flush(); err != nil {
			return err
		}
		if kind, _, err := readPacket(stream.Reader); err != nil || kind != noop {
			return fmt.Errorf("asleep: packet %d, %w", kind, err)
		}
	}
}

func indexZero(body []byte) int {
	for index, value := range body {
		if value == 0 {
			return index
		}
	}
	return len(body) - 1
}

func writePacket(stream *bufio.ReadWriter, kind uint32, body string) error {
	header := append(stream.AvailableBuffer(), "\x00REQ"...)
	header = binary.BigEndian.AppendUint32(header, kind)
	header = binary.BigEndian.AppendUint32(header, uint32(len(body)))
	if _, err := stream.Write(header); err != nil {
		return err
	}
	_, err := stream.WriteString(body)
	return err
}

func readPacket(stream *bufio.Reader) (uint32, []byte, error) {
	var header [12]byte
	if _, err := io.ReadFull(stream, header[:]); err != nil {
		return 0, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(header[8:]))
	_, err := io.ReadFull(stream, body)
	return binary.BigEndian.Uint32(header[4:]), body, err
}
