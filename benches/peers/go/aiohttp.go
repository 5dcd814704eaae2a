package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Submits by POST, and asks for the result until it is there, as the tutorials do.
type aiohttp struct {
	url    string
	client *http.Client
	done   func(int)
}

func openAiohttp(o options, done func(int)) (session, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: o.connections, DisableCompression: true}
	return &aiohttp{"http://" + o.address + "/jobs", &http.Client{Transport: transport}, done}, nil
}

func (a *aiohttp) submit(_, n int) error {
	for range n {
		var created struct{ ID string }
		reply, err := a.client.Post(a.url, "text/plain", strings.NewReader(payload))
		if _, err = a.read(reply, err, &created); err != nil {
			return err
		}
		for ended := false; !ended; {
			var job struct{ Result string }
			reply, err := a.client.Get(a.url + "/" + created.ID)
			status, err := a.read(reply, err, &job)
			if err != nil {
				return err
			}
			ended = status == http.StatusOK
			if ended && job.Result != payload {
				return fmt.Errorf("another result: %q", job.Result)
			}
		}
		a.done(1)
	}
	return nil
}

// The status, once the body is read to its end so that the connection can be used again.
func (a *aiohttp) read(reply *http.Response, err error, into any) (int, error) {
	if err != nil {
		return 0, err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s", reply.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	return reply.StatusCode, err
}
