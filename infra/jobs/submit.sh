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

id="pipeline-$(date -u +%Y%m%dT%H%M%S)-$$"
environment=$(python -c 'import json, os
print(json.dumps({"env_vars": {"PIPELINE_ROOT": os.environ["PIPELINE_ROOT"]}}))')
trap 'ray job stop "$id"; exit 130' INT TERM

# Its exit code is ignored: the connection of the log may drop while the job still runs.
ray job submit --submission-id "$id" --working-dir . --runtime-env-json "$environment" \
  -- python -m pipeline run "$@" || true
while state=$(ray job status "$id"); do
  case $state in
    *succeeded*) exit 0 ;;
    *failed* | *stopped*) exit 1 ;;
  esac
  sleep 5
done
exit 1
