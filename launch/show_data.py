r"""Shows what a dataset holds: a page of text and, with --out, a sheet of frames and actions.

  python launch/show_data.py --data=runs/data/mt4
  python launch/show_data.py --data=bridge_dataset --standard=bridge_v2 --out=runs/bridge.png
  python launch/show_data.py --data=droid --split='train[:1%]' --on_error=skip
  python launch/show_data.py --data=runs/data/lift --state=observation/robot0_eef_pos

The page has splits, features with shapes and ranges, statistics of every dimension, languages and
what was skipped. Any RLDS directory will do: unless --standard or the features are given, they are
chosen by their names, and the page says which were taken. The first look at a split indexes it,
which takes about as long as reading its files; later ones take seconds.
"""

import command

from absl import flags

from oat_jax.data import standardize
from oat_jax.data import statistics
from oat_jax.study import contact_sheet
from oat_jax.study import dataset as dataset_lib
from oat_jax.study import show_data

_DATA = flags.DEFINE_string("data", None, "RLDS directory, or that of its versions.", required=True)
_SPLIT = flags.DEFINE_string("split", "", "Split or part, e.g. train[:10%]; the first if unset.")
_STANDARD = flags.DEFINE_enum("standard", "", ["", *standardize.STANDARDS], "Known dataset it is.")
_ACTION = flags.DEFINE_list("action", [], "Action features, paths below steps/.")
_STATE = flags.DEFINE_list("state", [], "State features, paths below steps/.")
_TASK = flags.DEFINE_string("task", "", "Text feature that tells the task.")
_ON_ERROR = flags.DEFINE_enum(
  "on_error", "raise", ["raise", "skip"], "Stop at a bad episode, or leave it out and list it."
)
_OUT = flags.DEFINE_string("out", "", "PNG file of the sheet; none is drawn if unset.")
_EPISODES = flags.DEFINE_integer("episodes", 4, "Episodes on the sheet.", lower_bound=1)
_STATISTICS = flags.DEFINE_string("statistics", "", "File to write the statistics to.")
_STATISTICS_FORMAT = flags.DEFINE_enum(
  "statistics_format", "openpi", list(statistics.FORMATS), "Whose file it is."
)


def main() -> None:
  if _OUT.value:
    contact_sheet.check(_OUT.value)
  dataset = dataset_lib.read(
    _DATA.value, _SPLIT.value, _STANDARD.value, _ACTION.value, _STATE.value, _TASK.value,
    _ON_ERROR.value,
  )  # fmt: skip
  print(show_data.describe(dataset), flush=True)
  if _STATISTICS.value:
    dataset_lib.write_statistics(_STATISTICS.value, dataset, _STATISTICS_FORMAT.value)
    print(f"\nwrote {_STATISTICS.value}")
  if _OUT.value:
    contact_sheet.draw(_OUT.value, dataset, _EPISODES.value)
    print(f"\nwrote {_OUT.value}")


if __name__ == "__main__":
  command.run(main, stopped=command.BEGINS_AGAIN)
