"""From the table of a sweep to a directory: report.md, fit.json and figures."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np
import tqdm

from oat_jax import files
from oat_jax.scaling import allocation
from oat_jax.scaling import holdout
from oat_jax.scaling import law_table
from oat_jax.scaling import power_law

_BUDGETS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the largest run's FLOPs
_GREEK = {"parameters": "α", "windows": "β", "examples": "β", "bits": "γ"}
_LETTER = {"parameters": "N", "windows": "D", "examples": "D", "bits": "bits"}


def write(
  table: str | pathlib.Path,
  out: str | pathlib.Path,
  metric: str = "",
  num_tokens: int = 0,
  data: str = "windows",
  at: str = "last",
  where: Sequence[str] = (),
  resamples: int = power_law.RESAMPLES,
) -> dict[str, Any]:
  """Fits the laws of a table and writes their report; returns the content of fit.json.

  Args:
    table: what `sweep.py collect` wrote, CSV or parquet.
    out: the report's directory, made if there is none.
    metric: which losses; "": mse of a tokenizer, cross_entropy of a policy.
    num_tokens: the prefix K of the law; 0: the longest.
    data: what counts as data: "windows", the different ones, or "examples", the seen ones.
    at: of each run, the "last" evaluated step or that of the "least" loss, as if stopped there.
    where: "AXIS=VALUE", runs of one place on a sweep's further axes.
    resamples: refits for the intervals.

  Raises:
    ValueError: a table that is none, that mixes what cannot be compared, or to which no law can be
      fitted, see `power_law.fit`.
  """
  rows = law_table.select(law_table.read(table), metric, data, at, where)
  prefixes = [int(K) for K in np.unique(rows["K"])]
  K = num_tokens or prefixes[-1]
  if K not in prefixes:
    raise ValueError(f"num_tokens is {K}; the table has K = {', '.join(map(str, prefixes))}")
  names = ("parameters", data)
  fits, bits, without = {}, None, []
  with_bits = rows.kind == "tokenizer" and len(set(rows["bits"])) >= 3
  with tqdm.tqdm(total=len(prefixes) + with_bits + 1, desc="fits", unit="law") as progress:
    for each in [K, *(other for other in prefixes if other != K)]:
      try:
        fits[each] = _fit(rows.where(rows["K"] == each), names, resamples)
      except ValueError as error:
        if each == K:
          raise
        without.append(f"there is no law of K = {each}: {error}")
      progress.update()
    if with_bits:
      try:
        bits = _fit(rows, (*names, "bits"), resamples, factors=1)
      except ValueError as error:  # it asks for more runs than the law of one prefix does
        without.append(f"there is no law with bits: {error}")
      progress.update()
    one = rows.where(rows["K"] == K)
    held_out = holdout.predict_largest(
      one.x(names), one["loss"], names, one.groups(), resamples=resamples
    )
    progress.update()
  fits = dict(sorted(fits.items()))
  cost = allocation.measured(one["parameters"], one[data], one["examples"], one["flops"])
  largest = one["flops"].max()
  summary = {
    "table": str(table),
    "kind": rows.kind,
    "metric": rows.metric,
    "data": data,
    "at": at,
    "num_tokens": K,
    "runs": len(one["run"]),
    "evaluation_set": str(one["evaluation_set"][0]),
    "code": sorted(set(map(str, one["code"]))),
    "device": sorted(set(map(str, one["device"]))),
    "laws": {str(each): _described(fitted) for each, fitted in fits.items()},
    "law_with_bits": _described(bits) if bits else None,
    "held_out": held_out,
    "cost": cost._asdict() | {"passes_range": list(cost.passes_range)},
    "allocation": None
    if {*names} & {*fits[K].not_identified}
    else allocation.allocate(fits[K], cost, [share * largest for share in _BUDGETS]),
    "measured": {
      name: [float(one[name].min()), float(one[name].max())]
      for name in ("parameters", "windows", "examples", "flops", "loss")
    },
  }
  summary["warnings"] = [*rows.warnings, *_warnings(one, fits[K], cost), *without]
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  figures = _draw(out, rows, one, fits, bits, cost)
  files.write_text(out / "fit.json", json.dumps(_finite(summary), indent=2) + "\n")
  files.write_text(out / "report.md", _markdown(summary, figures))
  return summary


def _fit(
  rows: law_table.Rows, names: tuple[str, ...], resamples: int, factors: int = 0
) -> power_law.Fit:
  given = (rows.x(names), rows["loss"], names, rows.groups(), rows.names())
  return power_law.fit(*given, resamples=resamples, factors=factors)


def _finite(value: Any) -> Any:
  """Returns nested values with None for numbers that JSON does not know."""
  if isinstance(value, Mapping):
    return {name: _finite(each) for name, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(each) for each in value]
  return None if isinstance(value, float) and not np.isfinite(value) else value


def _described(fitted: power_law.Fit) -> dict[str, Any]:
  """Returns a fit's numbers; a term is its A at the middle of the data, where A can be read."""
  valued = lambda value, many_B: dict(
    zip(("value", "low", "high"), map(float, (value, *fitted.interval(many_B))))
  )
  law, laws = fitted.law, fitted.laws
  middle_V, T = np.log(fitted.x_RV).mean(0), law.A_T.shape[-1]
  at_middle = lambda each: np.exp(np.log(each.A_T) - each.alpha_V[..., :T] * middle_V[:T])
  by_name = lambda value_V, many_BV: {
    name: valued(value, many_B) for name, value, many_B in zip(fitted.names, value_V, many_BV.T)
  }
  return {
    "E": valued(law.E, laws.E),
    "A": by_name(law.A_T, laws.A_T),
    "exponents": by_name(law.alpha_V, laws.alpha_V),
    "middle": dict(zip(fitted.names, map(float, np.exp(middle_V)))),
    "terms_at_middle": by_name(at_middle(law), at_middle(laws)),
    "effects_ln": dict(zip(fitted.names, map(float, power_law.effects(fitted)))),
    "noise_ln": fitted.noise,
    "objective": fitted.objective,
    "rows": len(fitted.loss_R),
    "freedom": fitted.freedom,
    "not_identified": fitted.not_identified,
  }


def _warnings(
  one: law_table.Rows, fitted: power_law.Fit, cost: allocation.Cost
) -> list[str]:  # fmt: skip
  found = [
    f"{_named(name)} is not identified: {why}" for name, why in fitted.not_identified.items()
  ]
  if cost.steady() and one.data == "windows":
    found.append(
      f"every run passes {cost.passes:.3g} times over its data, so more windows are longer "
      "training too: the exponent of windows is that of both"
    )
  if not cost.steady():
    low, high = cost.passes_range
    found.append(
      f"the runs pass {low:.3g} to {high:.3g} times over their data, so FLOPs are not one function "
      f"of parameters and {one.data}; the allocation takes the mean, {cost.passes:.3g}"
    )
  if cost.off > 0.1:
    found.append(
      f"FLOPs an example are no power of parameters: up to {100 * np.expm1(cost.off):.0f} % off"
    )
  for name in ("code", "device"):
    values = sorted(set(map(str, one[name])))
    if len(values) > 1:
      found.append(f"the runs are of {len(values)} values of '{name}': {'; '.join(values)}")
  repeats = np.unique(one.groups(), return_counts=True)[1]
  if repeats.max() == 1:
    found.append("no run is repeated with another seed: the noise is what the law leaves")
  return found


def _draw(
  out: pathlib.Path,
  rows: law_table.Rows,
  one: law_table.Rows,
  fits: Mapping[int, power_law.Fit],
  bits: power_law.Fit | None,
  cost: allocation.Cost,
) -> dict[str, str]:
  """Draws all figures; returns {name: Markdown}."""
  from oat_jax.scaling import law_figures  # matplotlib: not where the numbers alone are asked for

  fitted = fits[int(one["K"][0])]
  captions = {
    "variables": "loss against parameters and data",
    "compute": "loss against compute",
    "residuals": "residuals",
  }
  law_figures.variables(out / "variables.png", one, fitted)
  law_figures.compute(out / "compute.png", one, fitted, cost)
  law_figures.residuals(out / "residuals.png", one, fitted)
  if not {*fitted.names} & {*fitted.not_identified}:
    captions["frontier"] = "the best parameters and data for a budget"
    law_figures.frontier(out / "frontier.png", one, fitted, cost)
  if len(fits) > 1:
    captions["exponents"] = "exponents by prefix"
    law_figures.exponents(out / "exponents.png", fits)
  if bits is not None:
    captions["bits"] = "error against bits"
    law_figures.bits(out / "bits.png", rows, bits)
  return {name: f"![{caption}]({name}.png)" for name, caption in captions.items()}


def _named(name: str) -> str:
  return "E" if name == "E" else f"the exponent of {name} ({_GREEK[name]})"


def _between(value: Mapping[str, float], form: str = ".3g") -> str:
  return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def headline(summary: Mapping[str, Any]) -> str:
  """Returns a report's law in one line."""
  law = summary["laws"][str(summary["num_tokens"])]
  of = ", ".join(f"{_GREEK[name]} of {name} {_told(law, name)}" for name in law["exponents"])
  return f"E {_told(law, 'E')}, {of}; 95 % intervals; {len(summary['warnings'])} warnings"


def _told(law: Mapping[str, Any], name: str) -> str:
  if name in law["not_identified"]:
    return f"below {law['E']['high']:.3g}" if name == "E" else "not identified"
  return _between(law["E"]) if name == "E" else _between(law["exponents"][name], ".2f")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
  lines = [head, ["---"] * len(head), *rows]
  return [f"| {' | '.join(line)} |" for line in lines] + [""]


def _markdown(summary: Mapping[str, Any], figures: Mapping[str, str]) -> str:
  """Returns the text of report.md."""
  K, data, measured = summary["num_tokens"], summary["data"], summary["measured"]
  law = summary["laws"][str(K)]
  upto = f" of the first {K} tokens" if K else ""
  text = lambda name, form=".3g": " to ".join(f"{value:{form}}" for value in measured[name])
  lines = [
    f"# Scaling law of a {summary['kind']}: {summary['metric']}{upto}",
    "",
    f"{summary['runs']} runs of {text('parameters', ',.0f')} parameters on "
    f"{text('windows', ',.0f')} different windows, {text('flops')} FLOPs; "
    f"losses {text('loss')}, "
    + ("at each run's last step" if summary["at"] == "last" else "at each run's least loss")
    + f", on the evaluation set {summary['evaluation_set'][:12]}. "
    f"Trained by {', '.join(summary['code'])} on {', '.join(summary['device'])}.",
    "",
  ]
  if summary["warnings"]:
    lines += ["**Read with care:**", "", *(f"- {each}" for each in summary["warnings"]), ""]
  lines += [
    "## The law",
    "",
    f"L = E + A / N^α + B / D^β; N: parameters, D: {data}. Brackets are 95 % intervals.",
    "",
    *_table(
      ["", "value", "what it changes", "at the middle of the data"],
      [
        ["E, what neither can remove", _told(law, "E"), "", ""],
        *(
          [
            f"{_GREEK[name]}, of {name}",
            _told(law, name),
            f"{100 * law['effects_ln'][name]:.0f} %",
            f"{law['terms_at_middle'][name]['value']:.3g} at {law['middle'][name]:,.0f}",
          ]
          for name in law["exponents"]
        ),
      ],
    ),
    f"The runs scatter by {100 * law['noise_ln']:.1f} % about it.",
    "",
    figures["variables"],
    "",
    figures["residuals"],
    "",
  ]
  if len(summary["laws"]) > 1:
    lines += ["## By the length of the prefix", ""]
    lines += _table(
      ["K", "E", *(f"{_GREEK[name]}, {name}" for name in law["exponents"]), "scatter"],
      [
        [k, *(_told(each, name) for name in ("E", *each["exponents"]))]
        + [f"{100 * each['noise_ln']:.1f} %"]
        for k, each in summary["laws"].items()
      ],
    )
    lines += [figures["exponents"], ""]
  if summary["law_with_bits"]:
    each = summary["law_with_bits"]
    lines += [
      "## Error against bits",
      "",
      "L = (E + A / N^α + B / D^β) / bits^γ, all prefixes.",
      "",
    ]
    lines += _table(
      [*(f"{_GREEK[name]}, {name}" for name in each["exponents"]), "scatter"],
      [[_told(each, name) for name in each["exponents"]] + [f"{100 * each['noise_ln']:.1f} %"]],
    )
    hidden = {name: why for name, why in each["not_identified"].items() if name != "E"}
    lines += [f"- {_named(name)}: {why}" for name, why in hidden.items()]
    lines += ["", figures["bits"], ""]
  lines += _held_out(summary["held_out"]) + _allocation(summary, law, figures)
  return "\n".join(lines).rstrip() + "\n"


def _held_out(cases: list[dict[str, Any]]) -> list[str]:
  lines = [
    "## What it says of runs that it was not fitted to",
    "",
    "Errors are predicted over measured; the naive guess is the largest fitted run's loss.",
    "",
  ]
  rows = []
  for case in cases:
    if "why" in case:
      rows.append([case["held_out"], "", "", "", "", f"not tried: {case['why']}"])
      continue
    worst = max(case["points"], key=lambda point: abs(np.log(1 + point["error"])))
    rows.append(
      [
        case["held_out"],
        f"{100 * np.expm1(case['mean_abs_ln']):.1f} %",
        f"{100 * np.expm1(case['mean_ln']):+.1f} %",
        f"{100 * worst['error']:+.1f} %",
        f"{100 * np.expm1(case['naive_mean_abs_ln']):.1f} %",
        f"{case['inside']} of {len(case['points'])}",
      ]
    )
  head = ["held out", "mean error", "signed", "worst", "naive guess", "inside the 95 % interval"]
  return lines + _table(head, rows)


def _allocation(
  summary: Mapping[str, Any], law: Mapping[str, Any], figures: Mapping[str, str]
) -> list[str]:
  cost, best, data = summary["cost"], summary["allocation"], summary["data"]
  lines = ["## The best use of a budget", ""]
  lines += [figures["compute"], ""]
  lines += [
    f"A run costs {cost['k']:.3g} N^{cost['rho']:.2f} FLOPs an example (off by "
    f"{100 * np.expm1(cost['off']):.1f} % at most) and sees each of its {data} "
    f"{cost['passes']:.3g} times.",
    "",
  ]
  hidden = [name for name in law["exponents"] if name in law["not_identified"]]
  if hidden:
    return lines + [
      f"Not identified, for {' and '.join(_named(name) for name in hidden)} is not.",
      "",
    ]
  grows = best["exponents"]
  lines += [
    f"The best N grows as C^{_between(grows['parameters'], '.2f')}, "
    f"the best D as C^{_between(grows['data'], '.2f')}.",
    "",
    *_table(
      ["FLOPs C", "parameters N", f"{data} D", "loss", ""],
      [
        [f"{row['flops']:.3g}", *(_between(row[name]) for name in ("parameters", "data", "loss"))]
        + ["; ".join(row["beyond"])]
        for row in best["budgets"]
      ],
    ),
    figures["frontier"],
    "",
  ]
  return lines
