r"""Evaluates a trained policy, or a tokenizer's ceiling, in a simulator; writes JSON and Markdown.

Examples:
  python launch/evaluate.py --workdir=W/policy --suite=metaworld/mt4 \
      --num_tokens=1,2,4,8 --episodes=25
  python launch/evaluate.py --workdir=W/tokenizer --ceiling --num_tokens=8 --replan=8
"""

from absl import flags

import command

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Working directory of the policy (or tokenizer).", required=True
)
_SUITE = flags.DEFINE_string("suite", "metaworld/mt4", "Suite of tasks.")
_NUM_TOKENS = flags.DEFINE_list("num_tokens", ["1", "2", "4", "8"], "Prefix lengths K.")
_EPISODES = flags.DEFINE_integer("episodes", 25, "Episodes per task.")
_REPLAN = flags.DEFINE_list("replan", ["8", "16"], "Steps R executed of each chunk.")
_CEILING = flags.DEFINE_bool(
  "ceiling", False, "Encode and decode the scripted expert's own chunks."
)
_SEED = flags.DEFINE_integer(
  "seed", None, "First goal seed; 100000 by default. Choose anything on others, e.g. 50000."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; the newest by default.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of token sampling; 0 is greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k most likely tokens; 0 is all.")
_MAX_STEPS = flags.DEFINE_integer(
  "max_steps", None, "Control steps an episode; the suite's by default."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Simulator processes; one per core if unset.")
_REPLACE = flags.DEFINE_bool(
  "replace", False, "Give up a report of another model, other goals or versions that lies in OUT."
)
_OUT = flags.DEFINE_string("out", None, "Report directory; WORKDIR/report by default.")


def main() -> None:
  from oat_jax.study import evaluation

  evaluation.Evaluation(
    _WORKDIR.value,
    _SUITE.value,
    num_tokens=command.integers(_NUM_TOKENS),
    replans=command.integers(_REPLAN),
    episodes=_EPISODES.value,
    ceiling=_CEILING.value,
    first_seed=_SEED.value,
    step=_STEP.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    max_steps=_MAX_STEPS.value,
    processes=_PROCESSES.value,
    out=_OUT.value,
    replace=_REPLACE.value,
  ).run()


if __name__ == "__main__":
  command.run(main)
