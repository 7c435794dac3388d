#!/usr/bin/env bash
# Submits the whole run to the Ray cluster at RAY_ADDRESS (http://HEAD:8265), follows its log, and
# ends with 0 only if it succeeded: `ray job submit` itself ends with 0 for a stopped job too.
#
#   PIPELINE_ROOT=s3://bucket/artifacts infra/jobs/submit.sh fast --data.source s3://bucket/mnist
#
# PIPELINE_ROOT must be storage that all nodes see. The nodes need this project's dependencies.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${PIPELINE_ROOT:?Set it to a folder or URI that all nodes of the cluster see}"
: "${RAY_ADDRESS:=http://127.0.0.1:8265}"
export RAY_ADDRESS

id="pipeline-$(date -u +%Y%m%dT%H%M%S)-$$"
ray job submit --submission-id "$id" --working-dir . \
  --runtime-env-json "{\"env_vars\": {\"PIPELINE_ROOT\": \"$PIPELINE_ROOT\"}}" \
  -- python -m pipeline run "$@" || true
[[ $(ray job status "$id") == *succeeded* ]]
