// Watch a job to its end: watch HOST:PORT JOB_ID [SANDBOX]
package main

import (
	"context"
	"fmt"
	"io"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "watch/pb"
)

// watch tells what happens to a job, each move once, until its final state has been given.
func watch(ctx context.Context, exports pb.ExportServiceClient, jobID int64, tell func(*pb.WatchJobResponse)) error {
	jitter := rand.New(rand.NewSource(time.Now().UnixNano()))
	revision := int64(0) // of the last message; 0: from the first move on
	for failures := 0; ; failures++ {
		request := &pb.WatchJobRequest{JobId: jobID, AfterRevision: proto.Int64(revision)}
		stream, err := exports.WatchJob(ctx, request)
		for err == nil {
			var message *pb.WatchJobResponse
			if message, err = stream.Recv(); err == nil {
				revision, failures = message.Revision, 0
				tell(message)
			}
		}
		if err == io.EOF {
			return nil // ended OK
		}
		code := status.Code(err)
		away := code == codes.Unavailable || code == codes.Canceled // the latter from a server that stops
		if !away || ctx.Err() != nil || failures == 10 {
			return err
		}
		delay := time.Second << min(failures, 3)
		time.Sleep(delay + time.Duration(jitter.Int63n(int64(delay/2))))
	}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "watch:", err)
		os.Exit(1)
	}
}

func run(words []string) error {
	connection, err := grpc.Dial(words[0],
		grpc.WithInsecure(), // today's: grpc.NewClient, and insecure.NewCredentials() of credentials/insecure
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	jobID, err := strconv.ParseInt(words[1], 10, 64)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if len(words) > 2 {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-sandbox-name", words[2]) // the tenant
	}
	return watch(ctx, pb.NewExportServiceClient(connection), jobID, func(message *pb.WatchJobResponse) {
		for _, move := range message.Transitions {
			fmt.Println(move.Revision, strings.TrimPrefix(move.ToState.String(), "JOB_STATE_"))
		}
	})
}
