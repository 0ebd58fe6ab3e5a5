"""Evaluation of working directories: what launch/evaluate.py and the quickstart call."""

from collections.abc import Sequence
from importlib import metadata
import itertools
import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

import oat_jax
from oat_jax import batch as batch_lib
from oat_jax.envs import env as env_lib
from oat_jax.envs import vector
from oat_jax.evaluate import report
from oat_jax.evaluate import rollout
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.train import models

# Demonstrations use seeds from 0 on. What is chosen by success is chosen on goals that are not
# reported, e.g. with --seed=50000.
REPORTED_SEED = 100_000

Setting = tuple[str, int, int]  # method, R, K

# The facts that make two reports ones of the same evaluation.
IDENTITY = (
  "model", "suite", "episodes_per_task", "first_seed", "max_steps", "sampling", "versions"
)  # fmt: skip


class PolicyActor:
  """A trained policy as a callable over simulator states; one compiled program for every K."""

  def __init__(self, trained: models.Trained, sampling: Sampling = Sampling(), seed: int = 0):
    policy = trained.model
    if not isinstance(policy, Policy):
      raise ValueError(f"the working directory holds a {trained.config.kind}; a policy's is needed")
    self.trained, self.spec = trained, trained.spec
    self.max_tokens = trained.model.max_tokens
    self.has_tokens = trained.tokenizer is not None
    self._params = jax.device_put(trained.params)
    self._key = jax.random.key(seed)

    def act(params, batch, key, call, num_tokens):
      key = jax.random.fold_in(key, call)
      return policy.act(params, batch, key, num_tokens, sampling)[0]

    self._act = jax.jit(act)

  def batch(self, state: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """Returns the batch that the policy acts on, from a `VectorState` and the tasks' names."""
    names = self.trained.spec.task_names
    unknown = sorted(set(tasks) - set(names)) if names != ("",) else []
    if unknown:
      raise ValueError(
        f"the policy does not know task '{unknown[0]}'; it was trained on {', '.join(names)}"
      )
    parts = []
    for name in self.trained.config.data.state:
      key = name.removeprefix("observation/")
      if key not in state.observation:
        raise ValueError(
          f"the policy reads '{name}'; the simulator gives {sorted(state.observation)}"
        )
      parts.append(state.observation[key])
    state_BTS = np.concatenate(parts, -1).astype(np.float32)
    if state_BTS.shape[1:] != (self.spec.observation_steps, self.spec.state_dim):
      raise ValueError(
        f"the policy reads states of shape {[self.spec.observation_steps, self.spec.state_dim]}; "
        f"the simulator gives {list(state_BTS.shape[1:])}"
      )
    ids = [names.index(task) if task in names else 0 for task in tasks]
    return {
      "observation": {"state": state_BTS, "task": np.asarray(ids, np.int32)},
      "observation_mask": state.observation_mask,
      "dataset": np.zeros(len(tasks), np.int32),
    }

  def __call__(self, batch: dict[str, Any], num_tokens: int, call: int = 0) -> np.ndarray:
    """Returns chunks (B, C, A) decoded from the first `num_tokens` tokens; waits for them.

    Another `call` draws other tokens, where sampling is random.
    """
    batch_lib.check(batch, self.spec, batch_lib.ACTING)
    if self.has_tokens:
      tokenizer_lib.check_num_tokens(num_tokens, self.max_tokens)
    budget = np.int32(num_tokens) if self.has_tokens else None
    return np.asarray(self._act(self._params, batch, self._key, np.uint32(call), budget))

  def driver(self, tasks: Sequence[str], num_tokens: int) -> rollout.Act:
    """Returns what `rollout.run` calls, for episodes of these tasks; every K has equal draws."""
    calls = itertools.count()
    return lambda state, active_B: self(self.batch(state, tasks), num_tokens, next(calls))


def ceiling_driver(env: Any, trained: models.Trained, num_tokens: int) -> rollout.Act:
  """The best a policy over these tokens could do: the expert's next chunk, encoded and decoded.

  At every replanning the scripted expert is rolled out noise-free from the saved simulator state.
  """
  tokenizer, params = trained.tokenizer, trained.params
  assert tokenizer is not None, "checked by `Evaluation`"
  params = params if trained.config.kind == "tokenizer" else params["tokenizer"]

  def act(state, active_B):
    del state
    chunks_BCA = env.expert_chunks(tokenizer.spec.action_horizon, active_B)
    tokens_BN = tokenizer.encode(params, chunks_BCA)
    return np.asarray(tokenizer.decode(params, tokens_BN, num_tokens))

  return act


def expert_driver(env: Any, replan: int) -> rollout.Act:
  """The scripted expert itself, without a tokenizer: what the ceiling is measured against."""
  return lambda state, active_B: env.expert_chunks(replan, active_B)


def act_latency_ms(actor: PolicyActor, budgets: Sequence[int]) -> dict[str, dict[str, float]]:
  """Returns {K: {p50, p95}}: wall milliseconds from observation to chunk, batch size 1, warm."""
  made = batch_lib.fake(actor.spec, 1)
  batch = {name: made[name] for name in batch_lib.ACTING}
  return {str(K): rollout.latency_ms(lambda K=K: actor(batch, K)) for K in budgets}


class Evaluation:
  """A policy, or with `ceiling` a tokenizer and the expert, on the goals of one suite.

  Its report grows by one setting (K, R) at a time. Settings that it already holds for the same
  model, goals and versions are kept and not run again: an evaluation that was stopped goes on.

  Attributes:
    settings: (method, R, K) that are asked for; K is 0 where there are no tokens.
    known: {setting: rows} that the report holds.
    replaces: in what another evaluation, whose report lies there, differs; empty where none does.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    suite_name: str,
    *,
    num_tokens: Sequence[int] = (1, 2, 4, 8),
    replans: Sequence[int] = (8, 16),
    episodes: int = 25,
    ceiling: bool = False,
    first_seed: int | None = None,
    step: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    max_steps: int | None = None,
    processes: int | None = None,
    out: str | os.PathLike | None = None,
    replace: bool = False,
  ):
    """Loads the model, checks what is asked for, and looks at what the report holds.

    Args:
      workdir: of the policy; of the tokenizer (or of a policy that holds one) for a ceiling.
      suite_name: a registered suite.
      num_tokens, replans: prefix lengths K and executed steps R; all pairs are run on the same
        goals.
      episodes: for each task and pair.
      ceiling: run the scripted expert, and its own chunks encoded and decoded.
      first_seed: goals of seeds first_seed, first_seed + 1, ...; `REPORTED_SEED` by default.
      step: the checkpoint's step; the newest by default.
      temperature, top_k: how tokens are drawn.
      max_steps: control steps of an episode; the suite's by default.
      processes: of the simulator.
      out: the report's directory; `workdir`/report by default.
      replace: give up a report of another model, other goals or versions that lies there.

    Raises:
      ValueError, FileNotFoundError: the model, the suite and the settings do not fit each other, or
      the report is of another evaluation.
    """
    self.trained = trained = models.load(workdir, step)
    data = trained.config.data
    if data.standard or data.mixture or data.actions or data.states:
      raise ValueError(
        f"{workdir} was trained on standardised or rearranged data; the simulator has its own "
        "actions and states, so train on them: config.data without standard and mixture"
      )
    suite = env_lib.suite(suite_name)
    if episodes < 1:
      raise ValueError(f"episodes is {episodes}; it must be at least 1")
    if not num_tokens or not replans:
      raise ValueError("num_tokens and replan need at least one value each")
    budgets = [0]
    if trained.tokenizer is not None:
      budgets = sorted(set(num_tokens))
      for K in budgets:
        tokenizer_lib.check_num_tokens(K, trained.tokenizer.max_tokens)
    elif ceiling:
      raise ValueError(f"a ceiling needs a tokenizer; {workdir} holds a policy without one")
    horizon = trained.spec.action_horizon
    for R in replans:
      if not 1 <= R <= horizon:
        raise ValueError(f"replan is {R}; it must be in 1..{horizon}, the chunk's steps")
    if trained.spec.action_dim != suite.action_dim:
      raise ValueError(
        f"{workdir} has actions of {trained.spec.action_dim} dimensions; "
        f"{suite_name} takes {suite.action_dim}"
      )
    first_seed = REPORTED_SEED if first_seed is None else first_seed
    data_path = trained.config.data.path
    goals_are_new = _check_goals_unused(data_path, suite_name, first_seed, episodes)
    sampling = Sampling(temperature, top_k)
    self.facts: dict[str, Any] = {
      "workdir": pathlib.Path(workdir).name,
      "step": trained.step,
      "model": models.digest(trained),
      "suite": suite_name,
      "episodes_per_task": episodes,
      "first_seed": first_seed,
      "goals_never_demonstrated": "checked" if goals_are_new else "not known here",
      "max_steps": suite.max_steps if max_steps is None else max_steps,
      "sampling": sampling._asdict(),
      "versions": versions(),
    }
    self._actor = None if ceiling else PolicyActor(trained, sampling)
    self._budgets = budgets
    self._make_env = lambda: vector.VectorEnv(
      suite_name, processes, observation_steps=trained.spec.observation_steps, max_steps=max_steps
    )
    self._pairs = rollout.assignments(suite.tasks, episodes, first_seed)
    self.target = pathlib.Path(workdir) / "report" if out is None else pathlib.Path(out)
    self.settings: list[Setting] = []
    for R in replans:
      if ceiling:
        self.settings.append(("expert", R, 0))
      method = "ceiling" if ceiling else trained.config.model["name"]
      self.settings += [(method, R, K) for K in budgets]
    exists = (self.target / "evaluation.json").exists()
    there: Any = self.content() if exists else None
    self.replaces = _differences(there, self.facts) if exists else ""
    if self.replaces and not replace:
      raise ValueError(
        f"{self.target} is of another evaluation ({self.replaces}); pass another --out, or "
        "--replace"
      )
    self.known, self._act_ms = {}, {}
    if exists and not self.replaces:
      self.known, self._act_ms = _known(there, self._pairs), there["facts"]["act_ms"]

  @property
  def missing(self) -> list[Setting]:
    """What is asked for and has not been run."""
    return [setting for setting in self.settings if setting not in self.known]

  def run(self) -> dict[str, Any]:
    """Runs what is missing, and returns the content of evaluation.json, now whole."""
    for method, R, K in self.settings:
      if (method, R, K) in self.known:
        print(f"{method} R={R}" + f" K={K}" * bool(K) + ": evaluated already", flush=True)
    if self.replaces:
      print(f"replacing the report in {self.target}: {self.replaces}", flush=True)
    if self.missing:
      if self._actor is not None:
        unmeasured = [K for K in self._budgets if str(K) not in self._act_ms]
        measured = self._act_ms | act_latency_ms(self._actor, unmeasured)
        self._act_ms = dict(sorted(measured.items(), key=lambda item: int(item[0])))
      with self._make_env() as env:
        for method, R, K in self.missing:
          act = self._driver(env, method, R, K)
          rows = rollout.run(env, act, self._pairs, replan=R, method=method, num_tokens=K)
          self.known[method, R, K] = rows
          self._write()
    content = self.content()
    for name, by_replan in content["success"].items():
      for R, rates in by_replan.items():
        print(f"\n{name}, {R} steps executed of each chunk\n{report.table(rates)}", flush=True)
    print(f"\nsee {self.target}/evaluation.json and evaluation.md", flush=True)
    return content

  def content(self) -> Any:
    """Returns what evaluation.json holds, or None where that is no JSON."""
    try:
      return json.loads((self.target / "evaluation.json").read_text())
    except ValueError:
      return None

  def _driver(self, env: Any, method: str, R: int, K: int) -> rollout.Act:
    if method == "expert":
      return expert_driver(env, R)
    if self._actor is None:
      return ceiling_driver(env, self.trained, K)
    return self._actor.driver([task for task, _ in self._pairs], K)

  def _write(self) -> None:
    rows = list(itertools.chain(*self.known.values()))
    report.write(self.target, rows, self.facts | {"act_ms": self._act_ms})


def _differences(there: Any, facts: dict[str, Any]) -> str:
  """Says in what the content of a report differs from one of these facts; empty if it does not."""
  try:
    differing = [name for name in IDENTITY if there["facts"].get(name) != facts[name]]
  except (KeyError, TypeError, AttributeError):
    return "evaluation.json is not a report"
  return "; ".join(
    f"{name} {there['facts'].get(name)} there, {facts[name]} now" for name in differing
  )


def _known(there: Any, pairs: Sequence[tuple[str, int]]) -> dict[Setting, list[rollout.Episode]]:
  """Returns {setting: rows} of the content of a report: whole settings only."""
  groups: dict[Setting, list[rollout.Episode]] = {}
  for values in there["episodes"]:
    row = rollout.Episode(**values)
    groups.setdefault((row.method, row.replan, row.num_tokens), []).append(row)
  whole = lambda rows: [(row.task, row.seed) for row in rows] == list(pairs)
  return {setting: rows for setting, rows in groups.items() if whole(rows)}


def _check_goals_unused(data_path: str, suite_name: str, first_seed: int, episodes: int) -> bool:
  """Raises ValueError where goals were demonstrated; False where the dataset does not tell.

  Datasets that launch/collect.py wrote tell, as long as they lie where the run was trained on them.
  """
  path = pathlib.Path(data_path) / "collection.json"
  if not path.exists():
    return False
  collection = json.loads(path.read_text())
  if collection["request"]["suite"] != suite_name:
    return True
  begin = collection["request"]["seed"]
  end = begin + max(total["attempts"] for total in collection["totals"].values())
  if first_seed < end and begin < first_seed + episodes:
    raise ValueError(
      f"goals of seeds {first_seed}..{first_seed + episodes - 1} were demonstrated in {data_path} "
      f"(seeds {begin}..{end - 1}); pass another --seed"
    )
  return True


def versions() -> dict[str, str]:
  """Versions that a report states."""
  names = ("jax", "flax", "optax", "numpy", "metaworld", "mujoco")
  found = {"oat_jax": oat_jax.__version__, "python": platform.python_version()}
  for name in names:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found
