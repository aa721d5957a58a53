#!/usr/bin/env bash
# Submits a study to a running Ray cluster: RAY_API_SERVER_ADDRESS=http://HEAD:8265 ray_job.sh
# STUDY DIR. The driver runs on the head, where RAY_ADDRESS names the cluster; it needs
# `pip install 'ray[default]'` here.
set -euo pipefail
study=$1 directory=$2
here=$(cd "$(dirname "$0")" && pwd)
exec ray job submit --working-dir "$here" --entrypoint-num-cpus 1 -- \
    bash search.sh "$study" "$directory" --workers auto
