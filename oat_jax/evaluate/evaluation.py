"""One subject on the goals of one suite: what is run, what is known already, and the report."""

from collections.abc import Mapping, Sequence
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

from oat_jax import config as config_lib
from oat_jax.envs import env as env_lib
from oat_jax.envs import goals
from oat_jax.envs import vector
from oat_jax.evaluate import chunks
from oat_jax.evaluate import report
from oat_jax.evaluate import rollout
from oat_jax.evaluate import subject as subject_lib
from oat_jax.evaluate import video
from oat_jax.export import versions as versions_lib

# Demonstrations use seeds from 0 on. What is chosen by success is chosen on goals that are not
# reported, e.g. with --select=50000.
REPORTED_SEED = 100_000

# How cameras are rendered, without the suite's shadows and with them; see `rendering.Cameras`.
QUALITY = ("no shadows, no reflections, no multisampling", "as the simulator's own")

Setting = tuple[str, int, int]  # method, R, K

# The facts that make two reports ones of the same evaluation.
IDENTITY = (
  "model", "checkpoint", "suite", "episodes_per_task", "first_seeds", "max_steps", "sampling",
  "stop", "ensemble", "limits", "render", "server", "versions",
)  # fmt: skip


class Evaluation:
  """A policy, or with `ceiling` a tokenizer and the expert, on the goals of one suite.

  Its report grows by one setting (K, R) at a time. Settings that it already holds for the same
  model, goals and versions are kept and not run again: an evaluation that was stopped goes on.

  Attributes:
    settings: (method, R, K) that are asked for; K is 0 where there are no tokens.
    episodes, seeds: goals for each task and first seed, and the first seeds.
    target: the report's directory.
    known: {setting: rows} that the report holds.
    replaces: in what another evaluation, whose report lies there, differs; empty where none does.
  """

  def __init__(
    self,
    subject: subject_lib.Subject,
    suite_name: str,
    out: str | os.PathLike,
    *,
    num_tokens: Sequence[int] = (1, 2, 4, 8),
    replans: Sequence[int] = (8, 16),
    episodes: int = 25,
    ceiling: bool = False,
    seeds: Sequence[int] = (REPORTED_SEED,),
    stop: str = "",
    ensemble: float | None = None,
    max_steps: int | None = None,
    processes: int | None = None,
    videos: int = 0,
    video_camera: str = "",
    replace: bool = False,
  ):
    """Checks what is asked for, and looks at what the report holds.

    Args:
      subject: who is evaluated.
      suite_name: a registered suite.
      out: the report's directory.
      num_tokens, replans: prefix lengths K and executed steps R; all pairs are run on the same
        goals.
      episodes: for each task, pair and first seed.
      ceiling: run the scripted expert, and its own chunks encoded and decoded.
      seeds: first seeds; each gives goals of seeds first, first + 1, ...
      stop: "", or "refinement": each chunk ends where further tokens are not expected to matter,
        and num_tokens are those spent on average.
      ensemble: m of `chunks.Ensemble`; None executes each chunk as it is.
      max_steps: control steps of an episode; the suite's by default.
      processes: of the simulator.
      videos: as many failed episodes of each setting are written as OUT/videos/*.mp4, acted again
        with the actions that were executed. A setting whose videos are not there is run again.
      video_camera: the simulator's camera that videos look through; the suite's own choice if "".
      replace: give up a report of another model, other goals or versions that lies there.

    Raises:
      ValueError: the subject, the suite and the settings do not fit each other, or the report is of
        another evaluation.
      RuntimeError, ImportError: videos or a policy's cameras are to be rendered and cannot be.
    """
    self.subject, where = subject, subject.where
    suite = env_lib.suite(suite_name)
    video_camera = video_camera or suite.video_camera
    config_lib.at_least(episodes, 1, "episodes")
    config_lib.at_least(videos, 0, "videos")
    if not num_tokens or not replans or not seeds:
      raise ValueError("num_tokens, replan and seeds need at least one value each")
    if not ceiling and not subject.acts:
      raise ValueError(f"{where} holds a tokenizer, which does not act; its ceiling can be run")
    budgets = [0]
    if subject.max_tokens:
      budgets = sorted(set(num_tokens))
      for K in budgets:
        config_lib.between(K, 1, subject.max_tokens, "num_tokens")
    elif ceiling:
      raise ValueError(f"a ceiling needs a tokenizer; {where} holds a policy without one")
    if ceiling and not subject.reconstructs:
      raise ValueError(f"a ceiling needs a tokenizer that encodes; {where} does not")
    horizon = subject.spec.action_horizon
    for R in replans:
      if not 1 <= R <= horizon:
        raise ValueError(f"replan is {R}; it must be in 1..{horizon}, the chunk's steps")
    if subject.spec.action_dim != suite.action_dim:
      raise ValueError(
        f"{where} has actions of {subject.spec.action_dim} dimensions; "
        f"{suite_name} takes {suite.action_dim}"
      )
    config_lib.choose(stop, ("", "refinement"), "stop")
    if stop and (ceiling or not subject.refines):
      raise ValueError(f"stop is 'refinement', but {where} has not learned refinements")
    goals.check_apart([("reported", first, first + episodes) for first in seeds])
    goals_are_new = goals.check_new(subject.shown, suite_name, seeds, episodes)
    if ensemble is not None:
      chunks.Ensemble(ensemble, 1)  # checks it
    cameras, image_size = ((), 1) if ceiling else subject_lib.rendered(subject.spec)
    if videos:
      video.encoder()
    if videos or cameras:
      env_lib.choose_renderer()
    quality = QUALITY[suite.shadows]
    renderer = os.environ.get("MUJOCO_GL", "MuJoCo's own choice")
    self.facts: dict[str, Any] = subject.facts | {
      "suite": suite_name,
      "episodes_per_task": episodes,
      "first_seeds": list(seeds),
      "batch": episodes * len(suite.tasks) * len(seeds),
      "goals_never_demonstrated": "checked" if goals_are_new else "not known here",
      "max_steps": suite.max_steps if max_steps is None else max_steps,
      "stop": stop,
      "ensemble": ensemble,
      "render": None
      if not cameras
      else {"cameras": list(cameras), "pixels": image_size, "quality": quality, "by": renderer},
      "videos": None
      if not videos
      else {"camera": video_camera, "pixels": video.SIZE, "quality": quality, "by": renderer},
      "versions": versions(*suite.packages),
    }
    self._ceiling, self._stop, self._instructions = ceiling, bool(stop), suite.instructions
    self._ensemble, self._videos, self._video_camera = ensemble, videos, video_camera
    self.episodes, self.seeds = episodes, tuple(seeds)
    self._budgets = budgets
    self._make_env = lambda: vector.VectorEnv(
      suite_name,
      processes,
      observation_steps=subject.spec.observation_steps,
      max_steps=max_steps,
      cameras=cameras,
      image_size=image_size,
    )
    self._make_camera = lambda names, size: vector.VectorEnv(
      suite_name, 1, observation_steps=1, max_steps=max_steps, cameras=names, image_size=size
    )
    self._rendered = [(cameras, image_size)] if cameras else []
    self._rendered += [((video_camera,), video.SIZE)] if videos else []
    self._pairs = [
      pair for first in seeds for pair in rollout.assignments(suite.tasks, episodes, first)
    ]
    self.target = pathlib.Path(out)
    self.settings: list[Setting] = []
    for R in replans:
      if ceiling:
        self.settings.append(("expert", R, 0))
      method = "ceiling" if ceiling else subject.method + "+refinement" * bool(stop)
      self.settings += [(method, R, K) for K in budgets]
    exists = (self.target / "evaluation.json").exists()
    there: Any = self.content() if exists else None
    self.replaces = _differences(there, self.facts) if exists else ""
    if self.replaces and not replace:
      raise ValueError(
        f"{self.target} is of another evaluation ({self.replaces}); pass another --out, or "
        "--replace"
      )
    self.known: dict[Setting, list[rollout.Episode]] = {}
    self._act_ms: dict[str, dict[str, float]] = {}
    self._tolerances: dict[str, float] = {}
    self._restarts: list[dict[str, Any]] = []
    if exists and not self.replaces:
      self.known = _known(there, self._pairs)
      self._act_ms, self._restarts = there["facts"]["act_ms"], there["facts"]["restarts"]
      self._tolerances = there["facts"]["tolerances"]

  @property
  def missing(self) -> list[Setting]:
    """What is asked for and has not been run, or whose videos are not there."""
    return [
      setting
      for setting in self.settings
      if setting not in self.known or not all(path.exists() for path, _ in self._failed(setting))
    ]

  def run(self) -> dict[str, Any]:
    """Runs what is missing, and returns the content of evaluation.json, now whole."""
    missing = self.missing
    for setting in self.settings:
      if setting not in missing:
        print(f"{report.name(*setting)}: evaluated already", flush=True)
      elif setting in self.known:
        print(f"{report.name(*setting)}: run again, its videos are not there", flush=True)
    if self.replaces:
      print(f"replacing the report in {self.target}: {self.replaces}", flush=True)
      shutil.rmtree(self.target / "videos", ignore_errors=True)
    if missing:
      self.check_rendering()
      if not self._ceiling:
        if self._stop:
          self._tolerances |= self.subject.tolerances(self._budgets)
        unmeasured = [K for K in self._budgets if str(K) not in self._act_ms]
        measured = self._act_ms | subject_lib.latency_ms(self.subject, unmeasured, self._stop)
        self._act_ms = dict(sorted(measured.items(), key=lambda item: int(item[0])))
      with self._make_env() as env:
        for setting in missing:
          self._run(env, setting)
    content = self.content()
    for name, by_replan in content["success"].items():
      for R, rates in by_replan.items():
        print(f"\n{name}, {R} steps executed of each chunk\n{report.table(rates)}", flush=True)
    print(f"\nsee {self.target}/evaluation.json and evaluation.md", flush=True)
    return content

  def check_rendering(self) -> None:
    """Raises RuntimeError or ValueError where a camera that will be needed cannot be rendered."""
    for names, size in self._rendered:
      with self._make_camera(names, size) as env:
        _start(env, self._pairs[0])

  def replay(
    self, rows: Sequence[rollout.Episode], moments: int, pixels: int
  ) -> dict[rollout.Episode, list[Any]]:
    """Acts known episodes once more and looks at some moments of them.

    Args:
      rows: of one setting of `known`.
      moments: how many, as `video.moments` spaces them.
      pixels: height and width, seen by the camera that videos look through.

    Returns:
      {row: frames, uint8 (H, W, 3)}, without the rows that end otherwise than reported: a batch of
      another size rounds otherwise, which a long episode may end by.

    Raises:
      RuntimeError, ImportError: nothing can be rendered here, a simulator died, or an episode ends
        otherwise than it is reported.
    """
    env_lib.choose_renderer()
    pairs, camera = [(row.task, row.seed) for row in rows], self._video_camera
    setting, found = (rows[0].method, rows[0].replan, rows[0].num_tokens), {}
    with self._make_camera((camera,), pixels) as looking, self._make_env() as env:
      _start(looking, pairs[0])  # it may fail, so before anything is acted
      again = self._act(env, setting, pairs, progress=False)
      for row, now, actions_SA in zip(rows, again.rows, again.actions):
        if (now.success, now.steps) == (row.success, row.steps):
          at, end = video.moments(row.steps, moments), row.success
          found[row] = video.replay(looking, row.task, row.seed, actions_SA, camera, end, at)
    return found

  def content(self) -> Any:
    """Returns what evaluation.json holds, or None where that is no JSON."""
    try:
      return json.loads((self.target / "evaluation.json").read_text())
    except ValueError:
      return None

  def _run(self, env: Any, setting: Setting) -> None:
    """Runs one setting and saves its rows, then its videos."""
    for path, _ in self._failed(setting) if setting in self.known else []:
      path.unlink(missing_ok=True)
    outcome = self._act(env, setting, self._pairs)
    self.known[setting] = outcome.rows
    name = report.name(*setting)
    self._restarts = [each for each in self._restarts if each["setting"] != name] + [
      {"setting": name, "task": task, "seed": seed, "times": times}
      for (task, seed), times in zip(self._pairs, outcome.restarts)
      if times
    ]
    rows = list(itertools.chain(*self.known.values()))
    report.write(
      self.target,
      rows,
      self.facts
      | {"act_ms": self._act_ms, "tolerances": self._tolerances, "restarts": self._restarts},
    )
    failed = self._failed(setting)
    if failed:
      with self._make_camera((self._video_camera,), video.SIZE) as env:
        for path, row in failed:
          actions_SA = outcome.actions[outcome.rows.index(row)]
          camera = self._video_camera
          frames = video.replay(env, row.task, row.seed, actions_SA, camera, row.success)
          video.write(path, frames)
          print(f"wrote {path}", flush=True)

  def _failed(self, setting: Setting) -> list[tuple[pathlib.Path, rollout.Episode]]:
    """Returns the failed episodes of a known setting that become videos, and where these lie."""
    method, R, K = setting
    failed = [row for row in self.known[setting] if not row.success][: self._videos]
    name = f"{method}_R{R}_K{K}"
    folder = self.target / "videos"
    return [(folder / f"{row.task}_seed{row.seed}_{name}.mp4", row) for row in failed]

  def _act(
    self, env: Any, setting: Setting, pairs: Sequence[tuple[str, int]], progress: bool = True
  ) -> rollout.Outcome:
    method, R, K = setting
    if method == "expert":
      act = subject_lib.expert_driver(env, R)
    elif self._ceiling:
      act = subject_lib.ceiling_driver(env, self.subject, K)
    else:
      tasks = [task for task, _ in pairs]
      known = subject_lib.known_as(tasks, self.subject.spec, self._instructions)
      act = subject_lib.driver(self.subject, known, K, self._stop)
    return rollout.run(
      env,
      act,
      pairs,
      replan=R,
      method=method,
      num_tokens=K,
      ensemble=self._ensemble,
      limits=None if self._ceiling else self.subject.limits,
      progress=progress,
    )


def _start(env: Any, pair: tuple[str, int]) -> None:
  """Begins an episode whose cameras are looked through; RuntimeError where that does not work."""
  try:
    env.start([pair])
  except AttributeError as error:  # what PyOpenGL raises without the library
    raise RuntimeError(
      f"cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({error}); install libegl1 or "
      "libosmesa6 and set MUJOCO_GL to egl or osmesa"
    ) from error


def _differences(there: Any, facts: Mapping[str, Any]) -> str:
  """Says in what the content of a report differs from one of these facts; empty if it does not."""
  try:
    report.episodes(there)
    differing = [name for name in IDENTITY if there["facts"].get(name) != facts[name]]
  except ValueError as error:
    return str(error)
  except (KeyError, TypeError, AttributeError):
    return "evaluation.json is not a report"
  return "; ".join(
    f"{name} {there['facts'].get(name)!r} there, {facts[name]!r} now" for name in differing
  )


def _known(there: Any, pairs: Sequence[tuple[str, int]]) -> dict[Setting, list[rollout.Episode]]:
  """Returns {setting: rows} of the content of a report: whole settings only."""
  groups: dict[Setting, list[rollout.Episode]] = {}
  for row in report.episodes(there):
    groups.setdefault((row.method, row.replan, row.num_tokens), []).append(row)
  whole = lambda rows: [(row.task, row.seed) for row in rows] == list(pairs)
  return {setting: rows for setting, rows in groups.items() if whole(rows)}


def versions(*packages: str) -> dict[str, str]:
  """Returns the versions that a report states: jax and its kin, and the packages named."""
  return versions_lib.of("jax", "flax", "optax", "numpy", *packages)
