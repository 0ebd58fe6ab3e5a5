"""The quickstart's report: one HTML file that needs nothing else, to read, to send and to print."""

import base64
from collections.abc import Mapping, Sequence
import html
import io
import pathlib
from typing import Any

from PIL import Image

from oat_jax.evaluate import report
from oat_jax.study import figures
from oat_jax.study import strips as strips_lib

Rates = Mapping[str, Mapping[str, Any]]  # {task: {K: rate}}

_STYLE = """
:root{color-scheme:light;--ink:#1c2733;--soft:#6b7885;--rule:#dfe4e8;--fine:#2f6c8e}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.1rem 3rem;max-width:68rem;color:var(--ink);background:#fff;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.05rem;font-weight:600;margin:0;color:var(--soft)}
h2{font-size:1.3rem;line-height:1.25;margin:0 0 .35rem}
h3{font-size:1rem;margin:1.4rem 0 .1rem}
p{margin:.3rem 0 .8rem;max-width:46rem}
small,.soft,figcaption{color:var(--soft);font-size:.85rem}
section{border-top:1px solid var(--rule);margin-top:2.2rem;padding-top:1.5rem}
.hero{display:grid;gap:1.2rem 3rem;grid-template-columns:minmax(15rem,5fr) 7fr;align-items:center;
margin-top:.6rem}
.big{font-size:clamp(4rem,11vw,6.5rem);font-weight:700;line-height:1;letter-spacing:-.03em;
color:var(--fine)}
.lead{font-size:1.12rem;line-height:1.4;margin:.5rem 0}
.note{border-left:3px solid #d1495b;padding:.1rem 0 .1rem .8rem;margin:1.2rem 0 0}
.bars{display:grid;grid-template-columns:auto 1fr auto;gap:.45rem .8rem;align-items:center;
font-size:.9rem}
.bars b{text-align:right;white-space:nowrap;font-weight:600}
.bar{position:relative;height:.95rem;background:#eef1f4;border-radius:.5rem}
.bar i{position:absolute;left:0;top:0;bottom:0;background:var(--fine);border-radius:.5rem}
.bar u{position:absolute;top:50%;height:2px;margin-top:-1px;background:#0d2534}
.plain .bar i,.bar.plain i{background:#a9b5c0}
.cells{display:grid;gap:.4rem .8rem;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr))}
.cells img{width:100%;max-width:24rem;display:block}
.two{display:grid;gap:.5rem 2rem;grid-template-columns:minmax(0,1fr) minmax(0,1fr);
align-items:center}
figure{margin:1rem 0 1.6rem}
.strip{display:grid;grid-template-columns:repeat(8,1fr);gap:.3rem}
.strip img{width:100%;display:block;border-radius:.25rem}
.strip span{font-size:.72rem;color:var(--soft)}
.badge{font-weight:600;color:#2a7d4f}.badge.failure{color:#c2384b}
.tables{display:flex;flex-wrap:wrap;gap:0 2rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;margin:.4rem 0 1rem;font-size:.92rem;
font-variant-numeric:tabular-nums}
th,td{padding:.3rem .75rem .3rem 0;text-align:left;border-bottom:1px solid var(--rule);
vertical-align:top}
th{font-weight:600;font-size:.83rem;color:var(--soft)}
td small{display:block;line-height:1.1;font-size:.74rem;white-space:nowrap}
.rates td,.rates th{padding-left:.4rem}
@media(max-width:44rem){
body{padding-top:1.3rem;font-size:15px}
.hero,.two{grid-template-columns:minmax(0,1fr)}
.strip{grid-template-columns:repeat(4,1fr)}
th,td{padding-right:.4rem}.rates td,.rates th{padding:.25rem .1rem .25rem .3rem}
.rates th{font-size:.69rem}
}
@media print{
@page{margin:14mm}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
html{font-size:10px}body{padding:0;font-size:1rem;max-width:none}
section{margin-top:1rem;padding-top:.8rem}
figure,table,.cells,.two,.tables,.hero{break-inside:avoid}h2,h3{break-after:avoid}
.hero{grid-template-columns:5fr 7fr}.strip{grid-template-columns:repeat(8,1fr)}
}
"""


def quickstart(
  summary: Mapping[str, Any],
  target: pathlib.Path,
  cells: Mapping[str, int],
  strips: Mapping[str, strips_lib.Strip],
  unseen: str,
  max_steps: int,
) -> str:
  """Returns the text of report.html.

  Args:
    summary: the content of summary.json.
    target: the directory of the figures.
    cells: {figure: its number of cells}.
    strips: as `strips.make` returns them.
    unseen: why nothing was rendered, and what would help; empty if something was.
    max_steps: of an episode.
  """
  R, C = summary["replan"], summary["action_horizon"]
  most = list(summary["success"]["overall"])[-1]
  picture = lambda name, said: _cells(target / f"{name}.png", cells[name], said)
  name = f"Ordered action tokens in {summary['suite']}"
  half = summary["reconstruction_last_less_half"]
  floors = {str(R): summary["regression_success"], **summary["regression_success_other_replan"]}
  parts = [
    f"<header><h1>{_text(name)}</h1>{_hero(summary, most)}</header>",
    "<section><h2>Coarse to fine</h2><p>One held-out chunk of actions, decoded from its first 1, "
    "2, 4, &hellip; tokens: the first say roughly what happens, further ones say it more finely. "
    "Grey is what was demonstrated; the darker a line, the more tokens.</p>",
    picture("chunk", "A held-out chunk of actions, decoded from more and more tokens"),
    "</section><section><h2>Anytime: a policy that may stop early</h2>",
    "<p>Tokens are generated one after the other, and every prefix decodes to a whole chunk. "
    "Most tokens against fewest, on the same goals: "
    f"{report.points(summary['success_most_less_fewest_tokens'])}.</p>",
    picture("anytime", "Success and milliseconds by the number of tokens generated"),
    "<div class=tables>",
    *(
      _rates(rates, "tokens K", f"Success, {steps} of {C} steps executed")
      for steps, rates in ((R, summary["success"]), *summary["success_other_replan"].items())
    ),
    "</div></section><section><h2>What it looks like</h2>",
    *_strips(summary, strips, unseen, most, max_steps),
    "</section><section><h2>What it is measured against</h2>",
    "<p>The same goals, for an MLP that regresses the chunk without tokens; for the expert's own "
    "chunks, encoded and decoded, which is what these tokens cost the expert; and for the "
    f"expert itself: {report.percent(summary['expert_success'])}.</p><div class=tables>",
    _rates(_by_first(floors), "steps R", "MLP without tokens"),
    _rates(
      summary["ceiling_by_task"], "tokens K", f"The expert's chunks, {R} of {C} steps executed"
    ),
    "</div>",
    "</section><section><h2>The tokenizer</h2><div class=two><div>",
    picture("reconstruction", "Held-out reconstruction error by the number of tokens"),
    "</div><div>",
    _table(
      ("tokens K", "held-out MSE", "policy's token accuracy"),
      [
        (K, f"{mse:.4f}", f"{100 * summary['token_accuracy'][K]:.0f} %")
        for K, mse in summary["reconstruction_mse"].items()
      ],
    ),
    f"<p class=soft>All tokens against half of them, on the same episodes: {half['mean']:+.4f} "
    f"(95 %: {half['low']:+.4f} to {half['high']:+.4f}). {summary['code_usage']} codes used on "
    "held-out windows. Accuracy is of the K-th token, given those before it.</p></div></div>",
    "</section><section><h2>Training</h2>",
    picture("training", "Training and held-out loss of tokenizer, policy and regression"),
    "</section><section><h2>Time and versions</h2><div class=two><div>",
    _table(
      ("stage", "minutes"),
      [
        *((stage, f"{seconds / 60:.1f}") for stage, seconds in summary["seconds"].items()),
        ("total", f"{summary['seconds_total'] / 60:.1f}"),
      ],
    ),
    "</div><div>",
    _table(
      ("tokens K", "ms a chunk, median", "95th percentile"),
      [(K, f"{ms['p50']:.2f}", f"{ms['p95']:.2f}") for K, ms in summary["act_ms"].items()],
    ),
    "<p class=soft>From observation to chunk, batch 1, warm. Training waited for data in "
    + ", ".join(f"{100 * wait:.1f} % ({run})" for run, wait in summary["input_wait"].items())
    + " of a step's time.</p></div></div>",
    f"<p class=soft>{_text(', '.join(' '.join(pair) for pair in summary['versions'].items()))}</p>",
    "</section>",
  ]
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(name)}</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
  )


def _hero(summary: Mapping[str, Any], most: str) -> str:
  """The headline, and beside it what it is to be read against."""
  overall = summary["success"]["overall"]
  best = overall[most]
  plain = next(iter(summary["regression_success"]["overall"].values()))
  bars = [(f"{K} token{'s' * (K != '1')}", rate, "") for K, rate in overall.items()]
  bars += [
    ("MLP, no tokens", plain, "plain"),
    (f"expert over {most} tokens", summary["ceiling"][most], "plain"),
    ("expert", summary["expert_success"], "plain"),
  ]
  lines = []
  for name, rate, kind in bars:
    width = lambda share: f"{100 * share:.1f}%"
    left, span = width(rate["low"]), width(rate["high"] - rate["low"])
    lines.append(
      f'<span>{name}</span><div class="bar {kind}"><i style="width:{width(rate["rate"])}"></i>'
      f'<u style="left:{left};width:{span}"></u></div><b>{100 * rate["rate"]:.0f} %</b>'
    )
  return (
    f"<div class=hero><div><div class=big>{100 * best['rate']:.0f}&thinsp;%</div>"
    f"<p class=lead><b>success with {most} tokens</b>: {best['k']} of {best['n']} goals that no "
    f"demonstration had, 95 % interval {100 * best['low']:.0f} to {100 * best['high']:.0f}&nbsp;%."
    "</p>"
    f"<p class=soft>{len(summary['success']) - 1} tasks; {summary['replan']} steps of each chunk "
    f"of {summary['action_horizon']} are executed. Made in {summary['seconds_total'] / 60:.0f} "
    f"minutes, from demonstrations to this page.</p></div><div class=bars>{''.join(lines)}</div>"
    f"</div><p class=note>{_text(summary['what'])}</p>"
  )


def _strips(
  summary: Mapping[str, Any],
  strips: Mapping[str, strips_lib.Strip],
  unseen: str,
  most: str,
  max_steps: int,
) -> list[str]:
  """A row of frames for each ending, or why there is none."""
  if unseen:
    again = "The same command with --stages=report tries again."
    return [f"<p>No pictures of episodes: {_text(unseen)}. {again}</p>"]
  lines = []
  counts = summary["success"]["overall"][most]
  there = {"success": counts["k"], "failure": counts["n"] - counts["k"]}
  for ending in strips_lib.ENDINGS:
    strip = strips.get(ending)
    if strip is None:
      why = "no episode of this setting ended so"
      if there[ending]:
        why = "those that were acted again did not end so again, by rounding"
      lines.append(f"<p><span class='badge {ending}'>No {ending}</span>: {why}.</p>")
      continue
    row = strip.row
    frames = [
      f'<div><img src="{_uri(frame, "JPEG")}" alt="step {step}"><span>step {step}</span></div>'
      for frame, step in zip(strip.frames, strip.steps)
    ]
    ends = f"not solved in {row.steps} steps"
    if row.success:
      ends = f"solved in {row.steps} of at most {max_steps} steps"
    lines.append(
      f"<figure><figcaption><span class='badge {ending}'>{ending.capitalize()}</span>: "
      f"{_text(row.task)}, goal of seed {row.seed}, {ends}; "
      f"K={row.num_tokens} tokens, R={row.replan} steps of each chunk executed.</figcaption>"
      f"<div class=strip>{''.join(frames)}</div></figure>"
    )
  said = []
  for task in dict.fromkeys(strip.row.task for strip in strips.values()):
    rate = summary["success"][task][most]
    said.append(f"Of {rate['n']} episodes of {_text(task)} {rate['k']} succeeded.")
  if said:
    said.append(
      "Chosen by rule, not by looks: the task with most of both, the success nearest the median "
      "length, the failure of the lowest seed; the next one where that did not end so again."
    )
    lines.append(f"<p class=soft>{' '.join(said)}</p>")
  return lines


def _cells(path: pathlib.Path, count: int, said: str) -> str:
  """A figure's cells, beside or below each other as the width allows."""
  rows, columns = figures.shape(count)
  with Image.open(path) as figure:
    width, height = figure.width / columns, figure.height / rows
    images = []
    for i in range(count):
      row, column = divmod(i, columns)
      left, top = round(column * width), round(row * height)
      cell = figure.crop((left, top, left + round(width), top + round(height)))
      images.append(_uri(cell.convert("RGB"), "PNG"))
  return (
    "<div class=cells>"
    + "".join(f'<img src="{uri}" alt="{_text(said)}">' for uri in images)
    + "</div>"
  )


def _uri(image: Image.Image, kind: str) -> str:
  """An image as an address that holds it."""
  data = io.BytesIO()
  image.save(data, kind, quality=85, optimize=True)
  return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _rates(by_task: Rates, first: str, title: str) -> str:
  """A title over a row for each K, a column for each task, the darker the more successes."""
  rows = []
  for K in by_task["overall"]:
    cells = [f"<td>{K}</td>"]
    for rates in by_task.values():
      rate = rates[K]
      cells.append(
        f'<td style="background:rgba(47,108,142,{0.3 * rate["rate"] ** 2:.3f})">'
        f"{100 * rate['rate']:.0f} %<small>{100 * rate['low']:.0f}&ndash;"
        f"{100 * rate['high']:.0f}</small></td>"
      )
    rows.append(f"<tr>{''.join(cells)}</tr>")
  heads = "".join(f"<th>{_text(name)}</th>" for name in (first, *by_task))
  table = f"<table class=rates><tr>{heads}</tr>{''.join(rows)}</table>"
  return f"<div class=scroll><h3>{title}</h3>{table}</div>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  cells = lambda tag, row: "".join(f"<{tag}>{_text(value)}</{tag}>" for value in row)
  body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
  return f"<table><tr>{cells('th', heads)}</tr>{body}</table>"


def _by_first(floors: Mapping[str, Any]) -> dict[str, Any]:
  """{R: {task: {K: rate}}} of a method without tokens -> {task: {R: rate}}."""
  tasks = next(iter(floors.values()))
  one = lambda by_k: next(iter(by_k.values()))
  return {task: {R: one(rates[task]) for R, rates in floors.items()} for task in tasks}


def _text(value: str) -> str:
  return html.escape(value)
