"""The model card of an export: what it is, how it was trained, what is known of it, its limits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from oat_jax.export import directory


def text(spec: directory.Spec, config: Any, held_out: Mapping[str, float], size: int) -> str:
  """Returns Markdown.

  Args:
    spec: of the export.
    config: of the run, a `train.config.Config`.
    held_out: metrics of held-out windows.
    size: number of parameters.
  """
  batch, tokens = spec.batch, spec.tokens
  what = "policy" if spec.kind == "policy" else "tokenizer"
  data = config.data
  names = batch.action_names or tuple(f"action {i}" for i in range(batch.action_dim))
  lines = [
    f"# {spec.name}, an oat_jax {what}",
    "",
    f"Chunks of {batch.action_horizon} steps of {batch.action_dim} actions "
    f"({', '.join(names)}), in the units of the dataset; {size:,} parameters, {spec.dtype}.",
  ]
  if tokens is not None:
    prefixes = "any prefix of them decodes" if tokens["prefix_decodable"] else "all are needed"
    lines.append(
      f"{tokens['max_tokens']} tokens of {tokens['vocab_size']} ids a chunk; {prefixes}."
    )
  lines += ["", "## Use", "", "```python", "import oat_jax.export", ""]
  lines.append('model = oat_jax.export.load("DIR")  # this directory')
  if spec.kind == "policy":
    observed = {"state": f"state,  # float32 ({batch.state_dim},)"}
    observed |= {f"image_{n}": f"frame,  # uint8 ({h}, {w}, 3)" for n, h, w in batch.cameras}
    lines.append("actions_CA, info = model.act({")
    lines += [f'  "{name}": {value}' for name, value in observed.items()]
    if batch.num_tasks > 1:
      lines.append(f'  "task": "{batch.task_names[0]}",')
    lines.append(f"}}, num_tokens={tokens['max_tokens'] if tokens else 1})")
  else:
    if "encode" in spec.functions:
      lines.append("tokens_BN = model.encode(actions_BCA)")
    lines.append("actions_BCA = model.decode(tokens_BN, num_tokens=4)")
  lines += ["```", ""]
  if spec.kind == "policy":
    lines += [
      f"`state` is {', '.join(spec.state)}; {batch.observation_steps} moments are looked at, the "
      "last one last.",
      f"Tasks: {', '.join(name or 'one, without a name' for name in batch.task_names)}.",
      "",
    ]
  sources = {name or "the data": each for name, each in data.datasets().items()}
  read = ", ".join(f"{name} ({each.split})" for name, each in sources.items())
  lines += [
    "## Training",
    "",
    f"Step {spec.checkpoint['step']} of {config.steps}, batches of {config.batch_size} windows, "
    f"seed {config.seed}, the averaged parameters. Data: {read}, fingerprint "
    f"{spec.checkpoint['dataset_fingerprint']}; a share of {data.validation_fraction:g} of the "
    "episodes of each task was held out.",
    "",
    "## Held-out windows",
    "",
  ]
  if held_out:
    lines += ["| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in sorted(held_out.items())]
  else:
    lines.append("Not measured.")
  lines += ["", "## Limits", ""]
  rate = spec.limits["rate"]
  rates = np.full(batch.action_dim, np.nan) if rate is None else rate
  lines += ["| action | lowest | highest | largest change a step |", "|---|---|---|---|"]
  for name, *row in zip(names, spec.limits["low"], spec.limits["high"], rates):
    low, high, change = (f"{x:.4g}" if np.isfinite(x) else "not known" for x in row)
    lines.append(f"| {name} | {low} | {high} | {change} |")
  lines += [
    "",
    "What is told to a robot never leaves these: they are those of the training data, and "
    "`spec.json` may be given narrower ones. Nothing is known of motions, scenes and instructions "
    "that the data do not hold; numbers above are of windows from the same source.",
    "",
  ]
  return "\n".join(lines)
