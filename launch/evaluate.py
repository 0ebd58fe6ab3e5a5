r"""Evaluates a trained policy, or a tokenizer's ceiling, in a simulator; writes JSON and Markdown.

Examples:
  python launch/evaluate.py --workdir=W/policy --suite=metaworld/mt4 \
      --num_tokens=1,2,4,8 --episodes=25 --videos=2
  python launch/evaluate.py --workdir=W/policy --select=50000 --ensemble=0.01
  python launch/evaluate.py --workdir=W/tokenizer --ceiling --num_tokens=8 --replan=8

OUT holds evaluation.json, with a row an episode, evaluation.md, and videos/ and selection/ where
asked for. Settings (K, R) that it holds already are not run again. Goals are episode seeds: those
that were demonstrated are refused, and so are selection goals among the reported ones.
"""

from absl import flags

import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the policy (or tokenizer).", required=True)
_SUITE = flags.DEFINE_string("suite", "metaworld/mt4", "Suite of tasks.")
_NUM_TOKENS = flags.DEFINE_list("num_tokens", ["1", "2", "4", "8"], "Prefix lengths K.")
_EPISODES = flags.DEFINE_integer("episodes", 25, "Episodes per task and first goal seed.")
_REPLAN = flags.DEFINE_list("replan", ["8", "16"], "Steps R executed of each chunk.")
_CEILING = flags.DEFINE_bool("ceiling", False, "Encode and decode the expert's own chunks.")
_SEEDS = flags.DEFINE_list("seeds", ["100000"], "First goal seeds.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; the newest by default.")
_SELECT = flags.DEFINE_integer("select", None, "Choose the step on goals from this seed on.")
_SELECT_EPISODES = flags.DEFINE_integer("select_episodes", 10, "Selection episodes per task.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of token sampling; 0 is greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k most likely tokens; 0 is all.")
_STOP = flags.DEFINE_string("stop", "", "Or refinement: num_tokens are spent on average.")
_ENSEMBLE = flags.DEFINE_float(
  "ensemble", None, "Average overlapping chunks, weights exp(-ENSEMBLE * i), oldest i = 0, as ACT."
)
_MAX_STEPS = flags.DEFINE_integer("max_steps", None, "Control steps; the suite's by default.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Simulator processes; one per core if unset.")
_VIDEOS = flags.DEFINE_integer("videos", 0, "Failed episodes of each setting to write as mp4.")
_VIDEO_CAMERA = flags.DEFINE_string("video_camera", "", "Of the videos; the suite's if unset.")
_REPLACE = flags.DEFINE_bool("replace", False, "Give up a report in OUT of another evaluation.")
_OUT = flags.DEFINE_string("out", None, "Of the report; WORKDIR/report[/STOP] by default.")


def main() -> None:
  from oat_jax.study import selection

  selection.evaluate(
    _WORKDIR.value,
    _SUITE.value,
    select=_SELECT.value,
    select_episodes=_SELECT_EPISODES.value,
    num_tokens=command.integers(_NUM_TOKENS),
    replans=command.integers(_REPLAN),
    episodes=_EPISODES.value,
    ceiling=_CEILING.value,
    seeds=command.integers(_SEEDS),
    step=_STEP.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    stop=_STOP.value,
    ensemble=_ENSEMBLE.value,
    max_steps=_MAX_STEPS.value,
    processes=_PROCESSES.value,
    videos=_VIDEOS.value,
    video_camera=_VIDEO_CAMERA.value,
    replace=_REPLACE.value,
    out=_OUT.value,
  )


if __name__ == "__main__":
  command.run(main)
