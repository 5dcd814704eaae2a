package main

import (
	"bufio"
	"bytes"
	"fmt"
	"log"
	"net"
	"strconv"
)

// The text protocol itself, with the commands of a batch in one write: no client library does less.
type beanstalkd struct {
	submitters []*bufio.ReadWriter
	put        []byte
}

func openBeanstalkd(o options, done func(int)) (session, error) {
	session := &beanstalkd{put: fmt.Appendf(nil, "put 1024 0 60 %d\r\n%s\r\n", len(payload), payload)}
	for range o.connections {
		stream, err := dial(o.address)
		if err != nil {
			return nil, err
		}
		session.submitters = append(session.submitters, stream)
	}
	for range o.workers {
		stream, err := dial(o.address)
		if err != nil {
			return nil, err
		}
		go func() { log.Fatal(workBeanstalkd(stream, o.prefetch, done)) }()
	}
	return session, nil
}

func (b *beanstalkd) submit(connection, n int) error {
	stream := b.submitters[connection]
	for range n {
		if _, err := stream.Write(b.put); err != nil {
			return err
		}
	}
	if err := stream.Flush(); err != nil {
		return err
	}
	for range n {
		line, err := stream.ReadSlice('\n')
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(line, []byte("INSERTED ")) {
			return fmt.Errorf("put: %s", line)
		}
	}
	return nil
}

// Reserves up to a batch at once: waits for one job, and takes the others if they are there. Their deletes go out
// together with the next reserves, before them, so that no delete waits behind a reserve that waits.
func workBeanstalkd(stream *bufio.ReadWriter, prefetch int, done func(int)) error {
	var jobs []uint64
	for {
		for _, job := range jobs {
			fmt.Fprintf(stream, "delete %d\r\n", job)
		}
		deletes := len(jobs)
		jobs = jobs[:0]
		fmt.Fprint(stream, "reserve\r\n")
		for range prefetch - 1 {
			fmt.Fprint(stream, "reserve-with-timeout 0\r\n")
		}
		if err := stream.Flush(); err != nil {
			return err
		}
		for range deletes {
			line, err := stream.ReadSlice('\n')
			if err != nil {
				return err
			}
			if !bytes.Equal(line, []byte("DELETED\r\n")) {
				return fmt.Errorf("delete: %s", line)
			}
			done(1)
		}
		for range prefetch {
			line, err := stream.ReadSlice('\n')
			if err != nil {
				return err
			}
			if bytes.Equal(line, []byte("TIMED_OUT\r\n")) {
				continue
			}
			fields := bytes.Fields(line)
			if len(fields) != 3 || string(fields[0]) != "RESERVED" {
				return fmt.Errorf("reserve: %s", line)
			}
			job, err := strconv.ParseUint(string(fields[1]), 10, 64)
			if err != nil {
				return err
			}
			jobs = append(jobs, job)
			if _, err := stream.Discard(len(payload) + 2); err != nil {
				return err
			}
		}
	}
}

func dial(address string) (*bufio.ReadWriter, error) {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return bufio.NewReadWriter(bufio.NewReaderSize(connection, 64<<10), bufio.NewWriterSize(connection, 64<<10)), nil
}
