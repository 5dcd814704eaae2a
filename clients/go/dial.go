package jobwire

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	defaultPort     = "50051"
	maxMessageBytes = 4 << 20
)

// target reads http://host:port or host:port, without a port 50051.
func target(address string) (string, error) {
	rest := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(address), "http://"), "/")
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]"), defaultPort
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 || host == "" || strings.ContainsAny(host, "/@ ") || strings.Contains(host, "://") {
		return "", fmt.Errorf("%q is not the address of a server: it must look like http://host:port", address)
	}
	return net.JoinHostPort(host, port), nil
}

// dial makes a connection that is opened when it is used.
func dial(address string, options []grpc.DialOption) (*grpc.ClientConn, error) {
	address, err := target(address)
	if err != nil {
		return nil, err
	}
	defaults := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		// Faster pings than this are not promised to be welcome.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		// A server that is back is found within a second or two. The pauses between calls are this package's own.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second}),
		grpc.WithDisableRetry(),
	}
	return grpc.NewClient("passthrough:///"+address, append(defaults, options...)...)
}
