"""The suites that there are: what can be said of them without their simulators."""

from collections.abc import Mapping
import json
import pathlib
import re
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
  video_view: tuple[float, float, float] = (0, 0, 1)  # left, top, side of the work in its image
  shadows: bool = False  # images have them, as those that policies elsewhere are trained on


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


def _robosuite(task: str, object_dim: int, instruction: str) -> Suite:
  return Suite(
    name=f"robosuite/{task}",
    tasks=(task,),
    max_steps=400,  # as RoboMimic evaluates (arXiv 2108.03298)
    action_dim=7,
    state_dim=9 + object_dim,
    proprioception_dim=9,
    instructions={task: instruction},
    packages=("praxis-robosuite", "mujoco", "numpy"),
    install="pip install 'oat-jax[robosuite]' && pip install --no-deps"
    " praxis-robosuite==1.5.2.post1",
    video_camera="agentview",
  )


# Tasks of LIBERO and RoboCasa, in the order of their own benchmarks.
_TASKS = json.loads((pathlib.Path(__file__).parent / "tasks.json").read_text())


def _libero(name: str, max_steps: int) -> Suite:
  tasks = tuple(_TASKS[name])
  # "KITCHEN_SCENE3_turn_on_the_stove" asks for "turn on the stove".
  said = lambda task: re.sub(r"^[A-Z_]+_SCENE\d+_", "", task).replace("_", " ")
  return Suite(
    name=name,
    tasks=tasks,
    max_steps=max_steps,
    action_dim=7,
    state_dim=8,
    proprioception_dim=8,
    instructions={task: said(task) for task in tasks},
    packages=("praxis-libero", "praxis-robosuite", "mujoco", "numpy"),
    install="`make sim-libero` makes an environment for it, .venv-libero",
    video_camera="agentview",
    shadows=True,
  )


def _robocasa(name: str, tasks: tuple[str, ...], max_steps: int) -> Suite:
  # RoboCasa's sentences name what a kitchen has ("the left drawer"); these hold in all kitchens.
  said = lambda task: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", task).lower()
  return Suite(
    name=name,
    tasks=tasks,
    max_steps=max_steps,
    action_dim=12,
    state_dim=16,
    proprioception_dim=16,
    instructions={task: said(task) for task in tasks},
    packages=("praxis-robocasa", "praxis-robosuite", "mujoco", "numpy"),
    install="`make sim-robocasa` makes an environment for it, .venv-robocasa",
    video_camera="robot0_agentview_left",
    shadows=True,
  )


_ALL = (
  # The four tasks on which OAT reports MetaWorld (arXiv 2602.04215).
  _metaworld("mt4", ("box-close", "coffee-pull", "disassemble", "stick-pull"), 300)._replace(
    video_view=(0.3, 0.33, 0.45)
  ),
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
  _robosuite("lift", 10, "lift the cube"),
  _robosuite("can", 14, "put the can into its bin"),
  _robosuite("square", 14, "put the square nut onto its peg"),
  # LIBERO (arXiv 2306.03310), for as long as evaluations of it let an episode be.
  _libero("libero/spatial", 220),
  _libero("libero/object", 280),
  _libero("libero/goal", 300),
  _libero("libero/10", 520),
  _libero("libero/90", 400),
  # The four tasks on which OAT reports RoboCasa, by their names in version 1.0, CoffeePressButton
  # being StartCoffeeMachine, and all atomic ones; horizons are the longest of RoboCasa's own.
  _robocasa(
    "robocasa/four",
    ("CloseDrawer", "TurnOffSinkFaucet", "StartCoffeeMachine", "TurnOffMicrowave"),
    300,
  ),
  _robocasa("robocasa/atomic", tuple(_TASKS["robocasa/atomic"]), 700),
)
SUITES = {suite.name: suite for suite in _ALL}


def get(name: str) -> Suite:
  """Returns the suite called `name`; ValueError, listing those known, where there is none."""
  if name not in SUITES:
    raise ValueError(f"there is no suite '{name}'; known are {', '.join(sorted(SUITES))}")
  return SUITES[name]
