#!/usr/bin/env bash
# Starts the study, or goes on with it: search.sh STUDY DIR [OPTION...]
set -euo pipefail
study=$1 directory=$2
shift 2
if [ -e "$directory/study.yaml" ]; then
    exec equisearch resume "$directory" --quiet "$@"
fi
exec equisearch start "$study" "$directory" --quiet "$@"
