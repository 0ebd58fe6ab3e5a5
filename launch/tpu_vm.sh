#!/usr/bin/env bash
# Trains on a Cloud TPU slice by a queued resource: waits for it, installs the checkout on every
# host, trains, and where the slice is preempted begins again, from the last checkpoint.
#
#   PROJECT=my-project ZONE=us-west4-a NAME=oat-1b TYPE=v5litepod-256 SHARED=10.0.0.2:/runs \
#   launch/tpu_vm.sh --config=configs/policy_oat.py:1b --config.data.path=gs://BUCKET/DATA \
#       --config.tokenizer=/mnt/shared/tokenizer --workdir=/mnt/shared/oat-1b
#
# SHARED is an NFS export, such as Filestore's, that every host mounts at /mnt/shared: a working
# directory is one folder for all. RUNTIME is the TPU software version, REPOSITORY and REVISION what
# is cloned; SPOT=1 asks for spot capacity. DRY_RUN=1 prints the commands and runs none.
set -euo pipefail

: "${PROJECT:?set PROJECT, ZONE, NAME, TYPE and SHARED; see the head of this file}"
: "${ZONE:?}" "${NAME:?}" "${TYPE:?}" "${SHARED:?}"
PAUSE="${PAUSE:-60}" # seconds between looks at the slice
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
REPOSITORY="${REPOSITORY:-$(git config --get remote.origin.url || echo .)}"
REVISION="${REVISION:-$(git rev-parse HEAD)}"

run() { if [[ -n "${DRY_RUN:-}" ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }
gcloud_tpu() { run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all_hosts() { gcloud_tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

# What the slice is in, NONE where there is none, UNKNOWN where that cannot be found out.
state() {
  [[ -n "${DRY_RUN:-}" ]] && echo ACTIVE && return
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" \
    --zone="$ZONE" --format='value(state.state)' 2>&1); then
    echo "$said"
  elif [[ "$said" == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}

ask_for_slice() {
  local spot=()
  [[ -n "${SPOT:-}" ]] && spot=(--spot)
  gcloud_tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" ${spot[@]+"${spot[@]}"}
}

give_back() { gcloud_tpu queued-resources delete "$NAME" --force --quiet || true; }

printf -v ARGUMENTS '%q ' "$@"
INSTALL="set -e; sudo mkdir -p /mnt/shared; \
mountpoint -q /mnt/shared || sudo mount -t nfs $SHARED /mnt/shared; \
test -d oat_jax || git clone --quiet $REPOSITORY oat_jax; cd oat_jax; \
git fetch --quiet; git checkout --quiet $REVISION; \
test -d .venv || python3.11 -m venv .venv; .venv/bin/pip install --quiet -e '.[train,tpu,gcs]'"
TRAIN="cd oat_jax && .venv/bin/python launch/train.py --distributed $ARGUMENTS"

while true; do
  now=$(state)
  case "$now" in
    ACTIVE) ;;
    NONE) ask_for_slice || sleep "$PAUSE"; continue ;;
    FAILED | SUSPENDED | SUSPENDING) give_back; sleep "$PAUSE"; continue ;;
    *) echo "waiting for $NAME: $now"; sleep "$PAUSE"; continue ;;
  esac
  if on_all_hosts "$INSTALL" && on_all_hosts "$TRAIN"; then
    give_back
    exit 0
  fi
  # Hosts are lost before the slice is said to be: one that stays there means that the run failed.
  for ((look = 0; look < 10; look++)); do
    [[ "$(state)" == ACTIVE ]] || continue 2
    sleep "$PAUSE"
  done
  echo "training failed on a slice that is there; it is kept: $NAME" >&2
  exit 1
done
