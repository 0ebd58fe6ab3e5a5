r"""Evaluates a policy, or a tokenizer's ceiling, in a simulator; writes JSON and Markdown.

Examples:
  python launch/evaluate.py --workdir=W/policy --suite=metaworld/mt4 \
      --num_tokens=1,2,4,8 --episodes=25 --videos=2
  python launch/evaluate.py --workdir=W/policy --select=50000 --ensemble=0.01
  python launch/evaluate.py --workdir=W/tokenizer --ceiling --num_tokens=8 --replan=8
  python launch/evaluate.py --export=E --num_tokens=1,8 --out=OUT
  python launch/evaluate.py --server=ws://127.0.0.1:8000 --num_tokens=1,8 --out=OUT

OUT holds evaluation.json, with a row an episode, evaluation.md, and videos/ and selection/ where
asked for. Settings (K, R) that it holds already are not run again. Goals are episode seeds: those
that were demonstrated are refused, and so are selection goals among the reported ones.
"""

import command

from absl import flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the policy (or tokenizer).")
_EXPORT = flags.DEFINE_string("export", None, "Of launch/export.py, instead of a workdir.")
_SERVER = flags.DEFINE_string("server", None, "Address of launch/serve.py, instead of both.")
_TOKEN_FILE = flags.DEFINE_string("token_file", None, "File with the server's token.")
_SUITE = flags.DEFINE_string("suite", "metaworld/mt4", "Suite of tasks.")
_NUM_TOKENS = flags.DEFINE_list("num_tokens", ["1", "2", "4", "8"], "Prefix lengths K.")
_REPLAN = flags.DEFINE_list("replan", ["8", "16"], "Steps R executed of each chunk.")
_SEEDS = flags.DEFINE_list("seeds", ["100000"], "First goal seeds.")
_OUT = flags.DEFINE_string("out", None, "Of the report; WORKDIR/report[/STOP] by default.")
_OF_WORKDIR = {
  "step": flags.DEFINE_integer("step", None, "Checkpoint step; the newest by default."),
  "select": flags.DEFINE_integer("select", None, "Choose the step on goals from this seed on."),
  "select_episodes": flags.DEFINE_integer("select_episodes", 10, "Selection episodes per task."),
  "temperature": flags.DEFINE_float("temperature", 0.0, "Of token sampling; 0 is greedy."),
  "top_k": flags.DEFINE_integer("top_k", 0, "Sample among the k most likely tokens; 0 is all."),
}
_SETTINGS = {
  "episodes": flags.DEFINE_integer("episodes", 25, "Episodes per task and first goal seed."),
  "ceiling": flags.DEFINE_bool("ceiling", False, "Encode and decode the expert's own chunks."),
  "stop": flags.DEFINE_string("stop", "", "Or refinement: num_tokens are spent on average."),
  "ensemble": flags.DEFINE_float("ensemble", None, "Average chunks, weights exp(-ENSEMBLE * i)."),
  "max_steps": flags.DEFINE_integer("max_steps", None, "Control steps; the suite's by default."),
  "processes": flags.DEFINE_integer("processes", None, "Of the simulator; one per core if unset."),
  "videos": flags.DEFINE_integer("videos", 0, "Failed episodes of each setting to write as mp4."),
  "video_camera": flags.DEFINE_string("video_camera", "", "Of the videos; the suite's if unset."),
  "replace": flags.DEFINE_bool("replace", False, "Give up a report in OUT of another evaluation."),
}


def main() -> None:
  settings = {name: flag.value for name, flag in _SETTINGS.items()}
  settings |= {"num_tokens": command.integers(_NUM_TOKENS), "seeds": command.integers(_SEEDS)}
  settings |= {"replans": command.integers(_REPLAN), "out": _OUT.value}
  if _WORKDIR.value and not (_EXPORT.value or _SERVER.value or _TOKEN_FILE.value):
    from oat_jax.study import selection

    more = {name: flag.value for name, flag in _OF_WORKDIR.items()}
    selection.evaluate(_WORKDIR.value, _SUITE.value, **more, **settings)
    return
  from oat_jax.evaluate import run

  of_workdir = [name for name, flag in _OF_WORKDIR.items() if flag.present]
  if _WORKDIR.value or of_workdir or not _OUT.value:
    wrong = f"--{of_workdir[0]} is of --workdir; " if of_workdir else ""
    raise ValueError(f"{wrong}give --workdir, or --export or --server with --out")
  run.evaluate(_EXPORT.value, _SERVER.value, _SUITE.value, token_file=_TOKEN_FILE.value, **settings)


if __name__ == "__main__":
  command.run(main)
