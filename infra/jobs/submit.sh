#!/usr/bin/env bash
# Submit `python -m pipeline run` to the Ray cluster whose dashboard is at RAY_ADDRESS, and follow
# its log. Exit with 0 only if it succeeded; `ray job submit` also exits with 0 for a stopped job.
# If interrupted, stop the job.
#
#   RAY_ADDRESS=http://HEAD:8265 PIPELINE_ROOT=s3://bucket/artifacts \
#     infra/jobs/submit.sh fast --data.source s3://bucket/mnist
#
# PIPELINE_ROOT must be storage that all nodes see. The nodes need this project's dependencies.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${PIPELINE_ROOT:?Set it to a folder or URI that all nodes of the cluster see}"
export RAY_ADDRESS="${RAY_ADDRESS:-http://127.0.0.1:8265}" PIPELINE_ROOT
# A proxy may not reach this machine's loopback, where a dashboard often is.
no_proxy="${no_proxy:-${NO_PROXY:-}}"
export no_proxy="${no_proxy:+$no_proxy,}localhost,127.0.0.1,::1"
export NO_PROXY="$no_proxy"

id="pipeline-$(date -u +%Y%m%dT%H%M%S)-$$"
environment=$(python -c 'import json, os
print(json.dumps({"env_vars": {"PIPELINE_ROOT": os.environ["PIPELINE_ROOT"]}}))')

# In the background, because bash runs a trap only when the command before it has ended.
child=
run() {
  "$@" &
  child=$!
  wait "$child"
}
trap 'kill $child 2>/dev/null || true; ray job stop "$id"; exit 130' INT TERM

run ray job submit --no-wait --submission-id "$id" --working-dir . \
  --runtime-env-json "$environment" -- python -m pipeline run "$@"
# The connection of the log may drop while the job still runs, and a request for the status fail.
run ray job logs --follow "$id" || true
failures=0
while [ "$failures" -lt 12 ]; do
  if state=$(ray job status "$id"); then
    failures=0
    case $state in
      *succeeded*) exit 0 ;;
      *failed* | *stopped*) exit 1 ;;
    esac
  else
    failures=$((failures + 1))
  fi
  run sleep 5
done
echo "The cluster did not tell the status of job $id in $failures requests. It may still run." >&2
exit 1
