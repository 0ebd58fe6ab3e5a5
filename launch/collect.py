r"""Collects demonstrations of scripted experts as an RLDS dataset.

  python launch/collect.py --suite=metaworld/mt4 --episodes=50 --noise=0.1 --out=runs/data/mt4

makes 50 successful episodes of each of the four tasks, in about 20 seconds on two cores. A killed
collection continues with the same command; a finished one is left as it is. Open it with
`tfds.builder_from_directory(OUT)`.
"""

import command

from absl import flags

from oat_jax.envs import collect

_SUITE = flags.DEFINE_string("suite", "metaworld/mt4", "Suite of tasks.")
_EPISODES = flags.DEFINE_integer("episodes", 50, "Successful episodes per task.")
_OUT = flags.DEFINE_string("out", None, "Directory of the dataset.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "First episode seed; a seed fixes the goal.")
_NOISE = flags.DEFINE_float("noise", 0.0, "Standard deviation of the noise on the actions.")
_CAMERAS = flags.DEFINE_list("cameras", [], "Cameras to store, e.g. corner2,gripperPOV.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Height and width of the images, pixels.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Simulator processes; one per core if unset.")


def main() -> None:
  totals = collect.collect(
    _SUITE.value,
    _EPISODES.value,
    _OUT.value,
    seed=_SEED.value,
    noise=_NOISE.value,
    cameras=tuple(_CAMERAS.value),
    image_size=_IMAGE_SIZE.value,
    processes=_PROCESSES.value,
  )
  for task, n in totals.items():
    print(f"{task}: {n['successes']} successes in {n['attempts']} attempts")
  print(f"wrote {_OUT.value}")


if __name__ == "__main__":
  command.run(main)
