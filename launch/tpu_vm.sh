#!/usr/bin/env bash
# Trains on a Cloud TPU slice by a queued resource: waits for it, installs the checkout on every
# host, trains, and where the slice is preempted begins again, from the last checkpoint.
#
#   PROJECT=my-project ZONE=us-west4-a NAME=oat-1b TYPE=v5litepod-256 \
#   launch/tpu_vm.sh --config=configs/policy_oat.py:1b --workdir=gs://BUCKET/oat-1b
#
# RUNTIME is the TPU software version, REPOSITORY and REVISION what is cloned; SPOT=1 asks for spot
# capacity. DRY_RUN=1 prints the commands and runs none.
set -euo pipefail

: "${PROJECT:?set PROJECT, ZONE, NAME and TYPE; see the head of this file}"
: "${ZONE:?}" "${NAME:?}" "${TYPE:?}"
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
REPOSITORY="${REPOSITORY:-$(git config --get remote.origin.url || echo .)}"
REVISION="${REVISION:-$(git rev-parse HEAD)}"

run() { if [[ -n "${DRY_RUN:-}" ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }
gcloud_tpu() { run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all_hosts() { gcloud_tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

state() {
  [[ -n "${DRY_RUN:-}" ]] && echo ACTIVE && return
  gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

ask_for_slice() {
  local spot=()
  [[ -n "${SPOT:-}" ]] && spot=(--spot)
  gcloud_tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" "${spot[@]}"
}

give_back() { gcloud_tpu queued-resources delete "$NAME" --force --quiet || true; }

printf -v ARGUMENTS '%q ' "$@"
INSTALL="set -e; test -d oat_jax || git clone --quiet $REPOSITORY oat_jax; cd oat_jax; \
git fetch --quiet; git checkout --quiet $REVISION; \
test -d .venv || python3.11 -m venv .venv; .venv/bin/pip install --quiet -e '.[train,tpu,gcs]'"
TRAIN="cd oat_jax && .venv/bin/python launch/train.py --distributed $ARGUMENTS"

while true; do
  case "$(state)" in
    ACTIVE) ;;
    NONE) ask_for_slice; continue ;;
    FAILED | SUSPENDED | SUSPENDING) give_back; continue ;;
    *) echo "waiting for $NAME: $(state)"; sleep 60; continue ;;
  esac
  on_all_hosts "$INSTALL"
  if on_all_hosts "$TRAIN"; then
    give_back
    exit 0
  fi
  # A slice that is there after a failure means that the run failed, not the slice.
  if [[ "$(state)" == ACTIVE ]]; then
    echo "training failed on a slice that is there; it is kept: $NAME" >&2
    exit 1
  fi
done
