"""The suites that there are: what can be said of them without their simulators."""

from collections.abc import Mapping
from typing import NamedTuple


class Suite(NamedTuple):
  """A set of tasks that share their observations, actions and horizon."""

  name: str
  tasks: tuple[str, ...]
  max_steps: int  # control steps of an evaluated episode
  action_dim: int
  state_dim: int
  proprioception_dim: int
  instructions: Mapping[str, str]  # task -> sentence
  packages: tuple[str, ...]  # whose versions an episode's numbers depend on
  install: str  # the command that brings the simulator
  video_camera: str  # what an onlooker sees best by


# MetaWorld's 50 tasks (arXiv 1910.10897), and what each asks for.
_METAWORLD = {
  "assembly": "put the ring onto the peg",
  "basketball": "drop the ball into the basket",
  "bin-picking": "move the cube from one bin to the other",
  "box-close": "put the lid on the box",
  "button-press-topdown": "press the button from above",
  "button-press-topdown-wall": "press the button behind the wall from above",
  "button-press": "press the button",
  "button-press-wall": "press the button behind the wall",
  "coffee-button": "press the button of the coffee machine",
  "coffee-pull": "pull the mug away from the coffee machine",
  "coffee-push": "push the mug under the coffee machine",
  "dial-turn": "turn the dial",
  "disassemble": "lift the nut off the peg",
  "door-close": "close the door",
  "door-lock": "lock the door",
  "door-open": "open the door",
  "door-unlock": "unlock the door",
  "hand-insert": "put the hand into the hole",
  "drawer-close": "close the drawer",
  "drawer-open": "open the drawer",
  "faucet-open": "open the faucet",
  "faucet-close": "close the faucet",
  "hammer": "hammer the nail into the block",
  "handle-press-side": "press the handle down from the side",
  "handle-press": "press the handle down",
  "handle-pull-side": "pull the handle up from the side",
  "handle-pull": "pull the handle up",
  "lever-pull": "pull the lever up",
  "pick-place-wall": "carry the puck over the wall to the goal",
  "pick-out-of-hole": "take the puck out of the hole",
  "pick-place": "carry the puck to the goal",
  "plate-slide": "slide the plate into the cabinet",
  "plate-slide-side": "slide the plate sideways into the cabinet",
  "plate-slide-back": "slide the plate out of the cabinet",
  "plate-slide-back-side": "slide the plate sideways out of the cabinet",
  "peg-insert-side": "insert the peg from the side",
  "peg-unplug-side": "unplug the peg sideways",
  "soccer": "push the ball into the goal",
  "stick-push": "push the thermos with the stick",
  "stick-pull": "pull the thermos with the stick",
  "push": "push the puck to the goal",
  "push-wall": "push the puck around the wall to the goal",
  "push-back": "pull the puck back to the goal",
  "reach": "reach the goal",
  "reach-wall": "reach the goal behind the wall",
  "shelf-place": "put the block on the shelf",
  "sweep-into": "sweep the block into the hole",
  "sweep": "sweep the block off the table",
  "window-open": "open the window",
  "window-close": "close the window",
}


def _metaworld(name: str, tasks: tuple[str, ...], max_steps: int) -> Suite:
  return Suite(
    name=f"metaworld/{name}",
    tasks=tasks,
    max_steps=max_steps,
    action_dim=4,
    state_dim=39,
    proprioception_dim=4,
    instructions={task: _METAWORLD[task] for task in tasks},
    packages=("metaworld", "mujoco", "numpy"),
    install="pip install 'oat-jax[sim]'",
    video_camera="corner2",
  )


_ALL = (
  # The four tasks on which OAT reports MetaWorld (arXiv 2602.04215).
  _metaworld("mt4", ("box-close", "coffee-pull", "disassemble", "stick-pull"), 300),
  # MetaWorld's own MT10 and MT50, for as long as its benchmark lets an episode be.
  _metaworld(
    "mt10",
    (
      *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close"),
      *("button-press-topdown", "peg-insert-side", "window-open", "window-close"),
    ),
    500,
  ),
  _metaworld("mt50", tuple(_METAWORLD), 500),
)
SUITES = {suite.name: suite for suite in _ALL}


def get(name: str) -> Suite:
  """Returns the suite called `name`; ValueError, listing those known, where there is none."""
  if name not in SUITES:
    raise ValueError(f"there is no suite '{name}'; known are {', '.join(sorted(SUITES))}")
  return SUITES[name]
