package example;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import jobwire.v1.JobServiceGrpc;
import jobwire.v1.JobServiceOuterClass.GetJobRequest;
import jobwire.v1.JobServiceOuterClass.SubmitRequest;
import jobwire.v1.JobServiceOuterClass.WatchResultsRequest;
import jobwire.v1.Types.JobFilter;
import jobwire.v1.Types.JobSpec;
import jobwire.v1.Types.Payload;

/** Submits a job, waits for it, watches it and reads an error. */
public class Example {
  public static void main(String[] arguments) throws Exception {
    String address = arguments.length > 0 ? arguments[0] : "localhost:50051";
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget(address).usePlaintext().keepAliveTime(30, TimeUnit.SECONDS).build();
    try {
      var jobs = JobServiceGrpc.newBlockingStub(channel);
      var payload = Payload.newBuilder().setText("{\"hello\":\"world\"}").setContentType("application/json");
      var request =
          SubmitRequest.newBuilder()
              .setSpec(JobSpec.newBuilder().setKind("echo").setPayload(payload))
              // With it a repeat after UNAVAILABLE does not make a second job.
              .setRequestId(UUID.randomUUID().toString())
              .setWait(Duration.newBuilder().setSeconds(10))
              .build();
      var reply = jobs.withDeadlineAfter(25, TimeUnit.SECONDS).submit(request);
      System.out.println(reply.getJob().getState() + " " + reply.getJob().getOutput().getJson().getStructValue());

      var watch =
          WatchResultsRequest.newBuilder()
              .setFilter(JobFilter.newBuilder().addJobIds(reply.getJob().getJobId()))
              .setUntilAllDone(true)
              .build();
      // Ends when all are done. After an error, come back: see `Watch` and `Replay` in the README.
      jobs.watchResults(watch)
          .forEachRemaining(
              message -> {
                if (message.hasFinished()) {
                  System.out.println("finished " + message.getFinished().getState() + " at " + message.getCursor());
                }
              });

      try {
        jobs.withDeadlineAfter(15, TimeUnit.SECONDS).getJob(GetJobRequest.newBuilder().setJobId("never-was").build());
      } catch (StatusRuntimeException error) {
        for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
          if (detail.is(ErrorInfo.class)) {
            System.out.println("refused " + detail.unpack(ErrorInfo.class).getReason());
          }
        }
      }
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}
