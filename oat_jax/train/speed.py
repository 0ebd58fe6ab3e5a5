"""How fast a run is, of what its devices could do: rates, FLOPs, memory, and traces on request.

MFU, model FLOPs utilisation: three times the forward pass's products of matrices and convolutions
(`cost.flops`; nothing computed again is counted), over the peak of the devices' bfloat16 products.
What is frozen, and tokens made within a step, count as if they were trained, so MFU is then high.
`mfu_compiled` is of the FLOPs that the compiled step asks for, computing again included.
"""

from collections.abc import Callable
import pathlib
import resource
import sys
from typing import Any, NamedTuple

import jax

from oat_jax.cost import chips
from oat_jax.cost import flops
from oat_jax.cost import hlo


class Step(NamedTuple):
  """A compiled train step and what it costs.

  Attributes:
    run: (state, batch) -> (state, metrics).
    windows: rows of a batch, of all processes.
    tokens: action tokens of a window; 1 where the model has none.
    model_flops: of one device.
    compiled_flops: of one device; None where the program's text does not say.
    peak_flops: of one device, a second; None where it is not known, as of CPUs.
  """

  run: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
  windows: int
  tokens: int
  model_flops: float
  compiled_flops: float | None
  peak_flops: float | None

  def values(self, steps_per_s: float) -> dict[str, float]:
    """Returns metrics of a run that does so many steps a second; of FLOPs, those of one device."""
    rates = {"": self.model_flops, "_compiled": self.compiled_flops}
    out = {"steps_per_s": steps_per_s, "windows_per_s": steps_per_s * self.windows}
    if self.tokens > 1:
      out["tokens_per_s"] = out["windows_per_s"] * self.tokens
    for name, each in rates.items():
      if each is not None:
        out[f"tflops_per_s{name}"] = steps_per_s * each / 1e12
        if self.peak_flops:
          out[f"mfu{name}"] = steps_per_s * each / self.peak_flops
    return out | memory()


def compile_step(step: Any, model: Any, state: Any, batch: Any, devices: int, windows: int) -> Step:
  """Compiles a jitted train step for such a state and batch, arrays or shapes with shardings."""
  program = step.lower(state, batch).compile()
  loss = lambda params, batch: model.loss(params, batch, jax.random.key(0))[0]
  asked = flops.TRAINING * flops.forward(loss, state.params, batch) / devices
  compiled = None
  try:
    compiled = hlo.cost(program.as_text()).flops
  except Exception as error:  # a figure is no reason to end a run
    print(f"what the compiled step asks for is not known: {error}", flush=True)
  peak = chips.peak_flops(jax.devices()[0].device_kind)
  tokens = getattr(model, "max_tokens", 1)
  return Step(program, windows, tokens, asked, compiled, peak)


def memory() -> dict[str, float]:
  """Returns gigabytes (10**9): the most in use so far by this process, and by its first device."""
  scale = 1 if sys.platform == "darwin" else 1024
  host = scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  out = {"host_memory_gb": host / 1e9}
  stats = jax.local_devices()[0].memory_stats() or {}  # CPUs have none
  if "peak_bytes_in_use" in stats:
    out["device_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
  return out


class Profiler:
  """Writes a trace of some steps, for TensorBoard's profiler or Perfetto."""

  def __init__(self, directory: pathlib.Path, begin: int, steps: int):
    """Traces `steps` steps from step `begin` on; none where `steps` is 0."""
    self._directory, self._begin, self._steps, self._tracing = directory, begin, steps, False

  def before(self, step: int) -> None:
    if self._steps and step == self._begin:
      jax.profiler.start_trace(str(self._directory))
      self._tracing = True

  def after(self, step: int, result: Any) -> None:
    """Ends the trace behind its last step, when what the step computes is there."""
    if self._tracing and step == self._begin + self._steps - 1:
      jax.block_until_ready(result)
      self.close()
      print(f"trace of steps {self._begin} to {step} in {self._directory}", flush=True)

  def close(self) -> None:
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
