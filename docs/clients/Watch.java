// Watch a job to its end: java Watch HOST:PORT JOB_ID [SANDBOX]

import com.profile_export.v1.ExportServiceGrpc;
import com.profile_export.v1.ExportServiceGrpc.ExportServiceBlockingStub;
import com.profile_export.v1.WatchJobRequest;
import com.profile_export.v1.WatchJobResponse;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.util.Iterator;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

public final class Watch {
  /** Tells what happens to a job, each move once, until its final state has been given. */
  static void watch(ManagedChannel channel, ExportServiceBlockingStub exports, long jobId, Consumer<WatchJobResponse> tell)
      throws InterruptedException {
    long revision = 0; // of the last message; 0: from the first move on
    for (int failures = 0; ; failures++) {
      var request = WatchJobRequest.newBuilder().setJobId(jobId).setAfterRevision(revision).build();
      try {
        Iterator<WatchJobResponse> stream = exports.watchJob(request);
        while (stream.hasNext()) {
          WatchJobResponse message = stream.next();
          revision = message.getRevision();
          failures = 0;
          tell.accept(message);
        }
        return; // ended OK
      } catch (StatusRuntimeException error) {
        var code = error.getStatus().getCode();
        boolean away = code == Status.Code.UNAVAILABLE || code == Status.Code.CANCELLED; // the latter from a server that stops
        if (!away || failures == 10) throw error;
      }
      long delay = 1000L << Math.min(failures, 3);
      Thread.sleep(delay + ThreadLocalRandom.current().nextLong(delay / 2));
      channel.resetConnectBackoff(); // the channel's own grows to 2 minutes
    }
  }

  public static void main(String[] words) throws InterruptedException {
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget(words[0])
            .usePlaintext()
            .keepAliveTime(20, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            .maxInboundMessageSize(64 << 20)
            .build();
    var headers = new Metadata();
    if (words.length > 2) { // the tenant
      headers.put(Metadata.Key.of("x-sandbox-name", Metadata.ASCII_STRING_MARSHALLER), words[2]);
    }
    var exports =
        ExportServiceGrpc.newBlockingStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    try {
      watch(channel, exports, Long.parseLong(words[1]), message ->
          message.getTransitionsList().forEach(move ->
              System.out.println(move.getRevision() + " " + move.getToState().name().substring("JOB_STATE_".length()))));
    } catch (StatusRuntimeException error) {
      System.err.println("watch: " + error.getMessage());
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }
}
