"""What `plan` finds, as tables."""

from collections.abc import Sequence
import math

from oat_jax.cost import chips
from oat_jax.scaling import plan as plan_lib

# Parameters listed one by one; the others, which are smaller, in one row.
LISTED = 25


def text(
  run: plan_lib.Run,
  where: chips.Topology,
  plans: Sequence[plan_lib.Plan],
  data_rate: float = 0.0,
) -> str:
  """Returns the report: the parameters on the best mesh, the meshes, and what bounds the best.

  Args:
    run: what is trained.
    where: the chips.
    plans: of some meshes.
    data_rate: windows a second that a host was measured to read; 0 where it was not.
  """
  chip = where.chip
  best = plan_lib.best(plans, chip)
  rows = run.config.batch_size
  lines = [
    f"{where.title}: {where.size} x {where.kind}, {chip.hbm_bytes / 1e9:.0f} GB and "
    f"{chip.flops / 1e12:.0f} bfloat16 TFLOP/s each, {chip.hbm_rate / 1e12:.2f} TB/s of memory, "
    f"{chip.link_rate / 1e9:.0f} GB/s a link and direction; {where.hosts} host(s)",
    f"{rows:,} windows a step, {rows / where.size:g} a chip; "
    f"{plans[0].model_flops * where.size:.3g} model FLOP (3 x forward, nothing computed again)",
    "",
  ]
  shown = best or next((plan for plan in plans if plan.leaves), None)
  if shown is not None:
    lines += _parameters(shown) + [""]
  lines += _meshes(plans, chip) + [""]
  if best is None:
    return "\n".join(
      [*lines, "no mesh fits: take a smaller batch, config.accumulate or more chips"]
    )
  return "\n".join(lines + _summary(run, where, best, data_rate))


def _parameters(plan: plan_lib.Plan) -> list[str]:
  leaves = sorted(plan.leaves, key=lambda leaf: -math.prod(leaf.shape))
  table = [
    (
      leaf.name,
      "x".join(map(str, leaf.shape)) or "1",
      leaf.spec.removeprefix("P"),
      _size(leaf.bytes),
    )
    for leaf in leaves[:LISTED]
  ]
  rest = leaves[LISTED:]
  if rest:
    count = sum(math.prod(leaf.shape) for leaf in rest)
    table.append((f"{len(rest)} more", f"{count:,}", "", _size(sum(x.bytes for x in rest))))
  trained = sum(math.prod(x.shape) for x in plan.leaves if x.name.startswith("network/"))
  title = f"parameters on mesh {_mesh(plan)}: {trained:,} trained"
  return [title, *_table(("name", "shape", "cut along", "a chip"), table)]


def _meshes(plans: Sequence[plan_lib.Plan], chip: chips.Chip) -> list[str]:
  rows = []
  for plan in plans:
    if plan.error:
      rows.append((_mesh(plan), plan.error))
      continue
    used = plan.state_bytes if plan.memory_bytes is None else plan.memory_bytes
    ms = {name: f"{1e3 * value:.1f}" for name, value in plan.seconds.items()}
    rows.append(
      (
        _mesh(plan),
        f"{_size(used)} ({100 * used / chip.hbm_bytes:.0f} %)"
        + " state" * (plan.memory_bytes is None),
        ms["compute"],
        ms.get("memory", "-"),
        ms.get("interconnect", "-"),
        plan.bound,
        ("" if plan.memory_bytes else "< ") + f"{100 * plan.mfu(chip):.0f} %",
        f"{plan.compile_seconds:.0f} s" if plan.memory_bytes else "-",
      )
    )
  times = (f"{name} ms" for name in ("compute", "memory", "interconnect"))
  head = ("data,fsdp,tensor", "memory", *times, "bound", "MFU", "compiled in")
  return ["at peak figures, one step:", *_table(head, rows)]


def _summary(
  run: plan_lib.Run, where: chips.Topology, plan: plan_lib.Plan, data_rate: float
) -> list[str]:
  chip, rate = where.chip, run.config.batch_size / plan.step_seconds
  least = "" if plan.memory_bytes else "at least "
  most = "at most " if least else ""
  tokens = getattr(run.model, "max_tokens", 0)
  lines = [
    f"best: --config.mesh={_mesh(plan)}, a step of {least}{1e3 * plan.step_seconds:.1f} ms bound "
    f"by {plan.bound}, {most}{100 * plan.mfu(chip):.0f} % of the chips' FLOP/s in the model's own "
    "(MFU)",
    f"{most}{rate:,.0f} windows/s, {rate * tokens:,.0f} action tokens/s, "
    f"{rate / where.hosts:,.0f} windows/s for each host to read{_readable(data_rate, rate, where)}",
  ]
  if not plan.fits(chip, 0.25):
    lines.append("less than a quarter of the memory is left")
  kinds: dict[tuple[str, int], list[float]] = {}
  for each in plan.collectives:
    of = kinds.setdefault((each.kind, each.group), [0, 0.0])
    of[0] += each.count
    of[1] += each.bytes
  if kinds:
    rows = [
      (kind, str(group), f"{count:.0f}", _size(size))
      for (kind, group), (count, size) in kinds.items()
    ]
    rows.sort(key=lambda row: row[0])
    lines += ["", "exchanged in one step:", *_table(("kind", "chips", "times", "bytes"), rows)]
  return lines


def _readable(data_rate: float, rate: float, where: chips.Topology) -> str:
  if not data_rate:
    return " (--data_figures compares it with what one was measured to read)"
  share = rate / where.hosts / data_rate
  verdict = "data will keep the chips waiting" if share > 1 else "it can"
  return f", of {data_rate:,.0f} that one was measured to read: {verdict} ({100 * share:.0f} %)"


def _mesh(plan: plan_lib.Plan) -> str:
  return ",".join(map(str, plan.mesh))


def _size(count: float) -> str:
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:.3g} GB"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  whole = [row for row in rows if len(row) == len(head)]
  widths = [max(len(row[i]) for row in [head, *whole]) for i in range(len(head))]
  line = lambda row: (
    "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
  )
  return [
    line(row) if len(row) == len(head) else f"  {row[0].ljust(widths[0])}  {row[1]}"
    for row in [head, *rows]
  ]
