# Watch a job to its end: bash watch.sh HOST:PORT JOB_ID [SANDBOX]
# Prints the messages as they come.

revision=0 # of the last message; 0: from the first move on
failures=0
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
while true; do
  grpcurl -plaintext -keepalive-time 20 -max-msg-sz 67108864 ${3:+-H "x-sandbox-name: $3"} \
    -d "{\"job_id\": $2, \"after_revision\": $revision}" "$1" profile_export.v1.ExportService/WatchJob |
    tee "$messages"
  code=${PIPESTATUS[0]}
  ((code == 0)) && exit 0 # ended OK: the final state has been given
  last=$(awk -F'"' '$2 == "revision" {last = $4} END {print last}' "$messages")
  [ -n "$last" ] && revision=$last failures=0
  # 64 + UNAVAILABLE; 64 + CANCELLED, from a server that stops; or nobody listens there.
  ((code != 78 && code != 65 && code != 1 || failures == 10)) && exit "$code"
  sleep "$(awk -v n=$failures -v seed=$RANDOM 'BEGIN {srand(seed); print 2 ^ (n < 3 ? n : 3) * (1 + rand() / 2)}')"
  ((failures += 1))
done
