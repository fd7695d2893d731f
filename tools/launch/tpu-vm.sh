#!/bin/bash
# The same command on every host of a TPU VM slice; maxlm finds the other hosts through the metadata server.
#
#     tools/launch/tpu-vm.sh NAME ZONE configs/runs/my-run.yaml optimizer.lr=1e-3
#
# Every host needs maxlm in ~/maxlm/.venv (pip install '.[tpu]'), and prepared data and runs_dir on a disk that all of
# them share (Filestore or another NFS) under one path. Start this in tmux: a run whose output has nowhere to go ends.
# To stop the run, saved:
#
#     gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=0 --command "pkill -TERM -f 'maxlm train'"
set -uo pipefail

if [ "$#" -lt 3 ]; then
  echo "usage: $0 NAME ZONE CONFIG [KEY=VALUE]..." >&2
  exit 2
fi
name=$1
zone=$2
shift 2
arguments=$(printf '%q ' "$@") # quoted for the shell of the other side

# 75: stopped after a complete save, by maintenance for instance; the same command goes on there.
code=75
while [ "$code" -eq 75 ]; do
  gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
    --command "cd ~/maxlm && exec .venv/bin/maxlm train $arguments"
  code=$?
done
exit "$code"
