r"""Loads an export directory and acts with it; needs jax, numpy, safetensors and flatbuffers only.

  python -m oat_jax.export.loader DIR --check

runs the functions on the inputs that lie in the directory, and compares what they give with what
they gave where they were exported.
"""

import argparse
from collections.abc import Mapping, Sequence
import importlib
import os
import sys
from typing import Any, NamedTuple

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from oat_jax import parameters
from oat_jax.export import directory
from oat_jax.export import limits as limits_lib
from oat_jax.export import observing
from oat_jax.policies import anytime
from oat_jax.policies.policy import Policy
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

# Of the self-test: share of a dimension's training range that an action may be off, and share of
# the tokens that may differ, because two logits lie so close that another processor orders them
# otherwise.
ACTION_TOLERANCE = 1e-3
TOKEN_TOLERANCE = 0.05


class Check(NamedTuple):
  """One row of the self-test.

  Attributes:
    name: of the function, with the prefix length where it has one.
    worst: the largest difference, in shares of the training range, or the share of tokens that
      differ.
    most: what it may be.
    same: whether every bit is as it was.
  """

  name: str
  worst: float
  most: float
  same: bool

  @property
  def passed(self) -> bool:
    return self.worst <= self.most


class Exported:
  """What an export directory holds: a tokenizer, or a policy and the tokenizer inside it.

  Attributes:
    spec: `directory.Spec`.
    rebuilt: why the functions were built anew from the parameters; "" where they were read.
  """

  def __init__(self, content: directory.Content, functions: Mapping[str, Any], rebuilt: str):
    self.spec, self.rebuilt = content.spec, rebuilt
    self._selftest = parameters.nested(content.selftest)
    self._params = jax.device_put(content.params)
    self._functions = functions
    inner = self._params.get("tokenizer", {}) if self.spec.kind == "policy" else self._params
    self._tokenizer_params = inner
    self._tokenizer = _tokenizer(self.spec, functions) if "decode" in functions else None

  @property
  def max_tokens(self) -> int:
    """N; 1 without tokens."""
    return self.spec.tokens["max_tokens"] if self.spec.tokens else 1

  def encode(
    self, actions_BCA: np.ndarray, action_mask_BC: Any = None, dataset_B: Any = None
  ) -> np.ndarray:
    """Returns int32 tokens (B, N) of chunks in the dataset's units; see `Tokenizer.encode`.

    Raises:
      ValueError: there is no such function, a shape is wrong, or an action not finite.
    """
    if "encode" not in self._functions:
      raise ValueError(
        f"a '{self.spec.name}' has no exported encode: {self._why_not()}; its decode is here"
      )
    assert self._tokenizer is not None
    params = self._tokenizer_params
    return np.asarray(self._tokenizer.encode(params, actions_BCA, action_mask_BC, dataset_B))

  def decode(
    self, tokens_BN: np.ndarray, num_tokens: int | None = None, dataset_B: Any = None
  ) -> np.ndarray:
    """Returns chunks float32 (B, C, A) of the first `num_tokens` tokens; see `Tokenizer.decode`."""
    if self._tokenizer is None:
      raise ValueError(f"a '{self.spec.name}' has no tokens to decode")
    params = self._tokenizer_params
    return np.asarray(self._tokenizer.decode(params, tokens_BN, num_tokens, dataset_B))

  def check(self) -> list[Check]:
    """Runs every function on the inputs of the self-test; returns a row for each comparison."""
    low_GA, high_GA = (np.asarray(self.spec.actions[end], np.float32) for end in ("low", "high"))
    span_GA = np.maximum(high_GA - low_GA, 1e-6)
    rows = []

    def tokens(name, found_BN, wanted_BN):
      off = float((found_BN != wanted_BN).mean())
      rows.append(Check(name, off, TOKEN_TOLERANCE, off == 0))

    def actions(name, found_BCA, wanted_BCA, dataset_B):
      off_BCA = np.abs(found_BCA - wanted_BCA) / span_GA[dataset_B][:, None]
      # Also where it is NaN.
      worst = float(off_BCA.max()) if np.isfinite(off_BCA).all() else np.inf
      rows.append(Check(name, worst, ACTION_TOLERANCE, np.array_equal(found_BCA, wanted_BCA)))

    if test := self._selftest.get("decode"):
      for K, wanted_BCA in test["actions"].items():
        found_BCA = self.decode(test["tokens"], int(K), test["dataset"])
        actions(f"decode, K={K}", found_BCA, wanted_BCA, test["dataset"])
    if test := self._selftest.get("encode"):
      tokens("encode", self.encode(test["actions"], test["mask"], test["dataset"]), test["tokens"])
    if test := self._selftest.get("act"):
      act = jax.jit(self._functions["act"].call)
      dataset_B = test["batch"]["dataset"]
      for K, wanted_BCA in test["actions"].items():
        found_BCA, info = act(self._params, test["batch"], test["key"], np.int32(K))
        same_B = np.ones(len(dataset_B), bool)
        if "tokens" in test:
          found_BN, wanted_BN = np.asarray(info["tokens_BN"]), test["tokens"][K]
          tokens(f"act's tokens, K={K}", found_BN, wanted_BN)
          same_B = (found_BN == wanted_BN).all(1)  # another token says another motion
        if same_B.any():
          found_BCA = np.asarray(found_BCA)[same_B]
          actions(f"act, K={K}", found_BCA, wanted_BCA[same_B], dataset_B[same_B])
      if until := self._selftest.get("act_until"):
        act = jax.jit(self._functions["act_until"].call)
        K, tolerance = np.int32(self.max_tokens), until["tolerance"]
        _, info = act(self._params, test["batch"], test["key"], K, tolerance)
        tokens("act_until's tokens", np.asarray(info["tokens_BN"]), until["tokens"])
    return rows

  def _why_not(self) -> str:
    if self.spec.tokens is None:
      return "it has no tokens"
    return "its encoding is host code; load the tokenizer with oat_jax.tokenizers"


class ExportedPolicy(Exported):
  """A policy: from observations to chunks of actions, with so many tokens, or in so much time."""

  def __init__(self, content: directory.Content, functions: Mapping[str, Any], rebuilt: str):
    super().__init__(content, functions, rebuilt)
    self.limits = limits_lib.of_spec(self.spec.limits)
    if len(self.limits.low_A) != self.spec.batch.action_dim:
      raise ValueError(
        f"{content.path / directory.SPEC}: limits of {len(self.limits.low_A)} dimensions; the "
        f"policy has {self.spec.batch.action_dim} actions"
      )
    self._language_GE = self._task_language(content.params)
    self._acting = anytime.Anytime(_policy(self.spec, functions), self._params)

  def act(
    self,
    observation: Mapping[str, Any],
    *,
    num_tokens: int | None = None,
    deadline_ms: float | None = None,
    mean_tokens: int | None = None,
    seed: int | None = None,
    last_action: np.ndarray | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns a chunk float32 (C, A) in the dataset's units, within the limits, and info.

    Args:
      observation: as `observing.batch` takes it; with a batch axis there is one on the chunks.
      num_tokens: the most tokens, in 1 .. max_tokens; all if None.
      deadline_ms: takes as many tokens as were measured to fit into it here; see `Anytime.act`.
      mean_tokens: ends each chunk where more tokens are not expected to matter, and spends so many
        on average: one of `spec.tolerances`.
      seed: of the draws, where they are random: equal ones draw equally; None draws anew.
      last_action: (A,), what was executed last, from which the limits' rate counts.

    Returns:
      the chunk, and {"num_tokens", "ms", "deadline_met", ...} as `Anytime.act` returns them.

    Raises:
      ValueError: what is observed does not fit, or an argument is out of its range.
    """
    batch, batched = self.batch(observation)
    actions_BCA, info = self.act_on(
      batch, num_tokens=num_tokens, deadline_ms=deadline_ms, mean_tokens=mean_tokens, seed=seed
    )
    actions_BCA = limits_lib.apply(self.limits, actions_BCA, last_action)
    if batched:
      return actions_BCA, info
    first = {name: x[0] if isinstance(x, np.ndarray) else x for name, x in info.items()}
    return actions_BCA[0], first

  def act_on(
    self,
    batch: Mapping[str, Any],
    *,
    num_tokens: int | None = None,
    deadline_ms: float | None = None,
    mean_tokens: int | None = None,
    seed: int | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """As `act`, from a batch to chunks (B, C, A) that the limits have not been applied to."""
    if seed is not None and not 0 <= seed < 2**32:
      raise ValueError(f"seed is {seed}; it must be in 0..{2**32 - 1}")
    return self._acting.act(
      batch, num_tokens=num_tokens, deadline_ms=deadline_ms, call=seed, **self._stop(mean_tokens)
    )

  def measure(
    self, batch_size: int = 1, mean_tokens: int | None = None, repeats: int = 50
  ) -> dict[int, float]:
    """Compiles, and returns {K: milliseconds}, which deadlines go by; see `Anytime.measure`."""
    row = lambda x: np.resize(x, (batch_size, *x.shape[1:]))
    batch = jax.tree.map(row, self._selftest["act"]["batch"])
    return self._acting.measure(batch, repeats=repeats, **self._stop(mean_tokens))

  def samples(self) -> dict[str, Any]:
    """Returns the batch that the policy acts on in the self-test."""
    return self._selftest["act"]["batch"]

  def check_mean_tokens(self, mean_tokens: int | None) -> None:
    """Raises ValueError unless the export knows how so many tokens are spent on average."""
    known = self.spec.tolerances
    if mean_tokens is not None and str(mean_tokens) not in known:
      raise ValueError(
        f"mean_tokens is {mean_tokens}; the export knows tolerances for {sorted(known) or 'none'}"
      )

  def _stop(self, mean_tokens: int | None) -> dict[str, Any]:
    """Returns the settings of `Anytime` that spend so many tokens on average."""
    self.check_mean_tokens(mean_tokens)
    if mean_tokens is None:
      return {}
    return {"stop": "refinement", "tolerance": self.spec.tolerances[str(mean_tokens)]}

  def _task_language(self, params: Mapping[str, Any]) -> np.ndarray | None:
    """Returns the embeddings (tasks, E) of the instructions that tasks have of their own."""
    if not self.spec.batch.language_dim:
      return None
    at: Any = params
    for part in self.spec.observation["language"]["of_tasks"].split("/"):
      at = at[part]
    return np.asarray(at, np.float32)

  def batch(self, observation: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Returns (what the policy acts on, whether it had a batch axis); see `observing.batch`."""
    batch, batched = observing.batch(observation, self.spec.batch)
    seen = batch["observation"]
    if self._language_GE is not None and "language" not in seen:
      seen["language"] = self._language_GE[seen["task"]]
    return batch, batched


def load(path: str | os.PathLike) -> Exported:
  """Returns the `ExportedPolicy`, or the tokenizer, of an export directory.

  Functions that this jax cannot read are built anew from the parameters, where the packages for
  that (oat_jax with its extra `train`) are there.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is broken, foreign or of another version.
    ImportError: functions have to be built anew, and cannot be here.
  """
  content = directory.read(path)
  platform, rebuilt = jax.default_backend(), ""
  platform = {"gpu": "cuda"}.get(platform, platform)
  functions: dict[str, Any] = {}
  for name, data in content.functions.items():
    try:
      functions[name] = _deserialize(data, platform)
    except Exception as error:  # whatever a reader of another version raises
      rebuilt = f"{name}: {' '.join(str(error).split()) or type(error).__name__}"
      break
  if rebuilt:
    functions = _rebuild(content, platform, rebuilt)
  kind = ExportedPolicy if content.spec.kind == "policy" else Exported
  return kind(content, functions, rebuilt)


def _deserialize(data: bytes, platform: str) -> export.Exported:
  """Returns a function; raises where this jax, or this platform, could not run it."""
  exported = export.deserialize(bytearray(data))
  version = exported.calling_convention_version
  first = export.minimum_supported_calling_convention_version
  last = export.maximum_supported_calling_convention_version
  if not first <= version <= last:
    raise ValueError(f"it has calling convention {version}; this jax takes {first} to {last}")
  if platform not in exported.platforms:
    raise ValueError(f"it was lowered for {', '.join(exported.platforms)}, not for {platform}")
  exported.mlir_module()  # reads the program, which deserialising does not
  return exported


def _rebuild(content: directory.Content, platform: str, why: str) -> dict[str, Any]:
  try:
    source = importlib.import_module("oat_jax.export.source")
    functions = source.functions(content.spec, content.params, (platform,))
  except ImportError as error:
    wrote = content.spec.versions.get("jax")
    raise ImportError(
      f"{content.path} was exported with jax {wrote}; jax {jax.__version__} does not take its "
      f"functions ({why}), and they cannot be built anew here ({error}): install 'oat-jax[train]', "
      f"or jax=={wrote}"
    ) from error
  print(f"{content.path}: functions are built anew from the parameters ({why})", file=sys.stderr)
  return functions


def _tokenizer(spec: directory.Spec, functions: Mapping[str, Any]) -> Tokenizer:
  """Returns the contract's functions, whose arguments are checked."""
  tokens = spec.tokens
  assert tokens is not None
  rows = lambda dataset_B, x: jnp.zeros(x.shape[0], jnp.int32) if dataset_B is None else dataset_B

  def encode(params, actions_BCA, action_mask_BC, dataset_B):
    dataset_B = rows(dataset_B, actions_BCA)
    return functions["encode"].call(params, actions_BCA, action_mask_BC, dataset_B)

  def decode(params, tokens_BN, num_tokens, dataset_B):
    dataset_B = rows(dataset_B, tokens_BN)
    return functions["decode"].call(params, tokens_BN.astype(jnp.int32), num_tokens, dataset_B)

  return tokenizer_lib.contract(
    Tokenizer(
      encode=encode,
      decode=decode,
      spec=spec.batch,
      vocab_size=tokens["vocab_size"],
      max_tokens=tokens["max_tokens"],
      prefix_decodable=tokens["prefix_decodable"],
      pad_id=tokens["pad_id"],
      budgets=tuple(tokens["budgets"]),
    )
  )


def _policy(spec: directory.Spec, functions: Mapping[str, Any]) -> Policy:
  """Returns what `Anytime` needs of a policy."""

  def act(params, batch, key, num_tokens, sampling, tolerance=None):
    del sampling  # is part of the function
    words = jax.random.key_data(key)
    if tolerance is None:
      return functions["act"].call(params, batch, words, num_tokens)
    return functions["act_until"].call(params, batch, words, num_tokens, tolerance)

  untrained: Any = dict.fromkeys(("init", "axes", "loss", "evaluate", "prepare"))
  return Policy(
    **untrained,
    act=act,
    spec=spec.batch,
    max_tokens=spec.tokens["max_tokens"] if spec.tokens else 1,
    budgets=tuple(spec.tokens["budgets"]) if spec.tokens else (1,),
    refines="act_until" in functions,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """The command oat-jax-check; returns the exit code."""
  what = "Says what an export directory holds, and tests it: oat-jax-check E --check"
  parser = argparse.ArgumentParser("oat-jax-check", description=what)
  parser.add_argument("directory", help="of the export, e.g. runs/quickstart/export")
  parser.add_argument("--check", action="store_true", help="run the self-test")
  parsed = parser.parse_args(argv)
  try:
    loaded = load(parsed.directory)
    spec = loaded.spec
    tokens = f", {spec.tokens['max_tokens']} tokens" if spec.tokens else ""
    sizes = f"chunks of {spec.batch.action_horizon} steps of {spec.batch.action_dim} actions"
    print(f"{spec.kind} '{spec.name}', {sizes}{tokens}; step {spec.checkpoint['step']}")
    if not parsed.check:
      return 0
    rows = loaded.check()
  except (ValueError, OSError, ImportError) as error:
    print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1
  for row in rows:
    says = "bit for bit" if row.same else f"off by {row.worst:.2g}, {row.most:.2g} allowed"
    print(f"{'ok    ' if row.passed else 'FAILED'}  {row.name}: {says}")
  failed = [row.name for row in rows if not row.passed]
  if failed:
    print(f"self-test failed: {', '.join(failed)}", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
