"""What a compiled program costs: against numbers by hand, and programs whose cost is known."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.cost import flops
from oat_jax.cost import hlo

# Six turns of a loop: a fusion that reads one of six layers, a product, an exchange.
TPU = """HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: bf16[6,16,32], param_1: s32[]) -> bf16[16,32] {
  %param_0 = bf16[6,16,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %constant.0 = s32[] constant(0)
  %slice = bf16[1,16,32]{2,1,0} dynamic-slice(%param_0, %param_1, %constant.0), sizes={1,16,32}
  ROOT %bitcast = bf16[16,32]{1,0} bitcast(%slice)
}

%all-reduce-scatter.fused (param_0: f32[32,32]) -> f32[2,32] {
  %param_0 = f32[32,32]{1,0} parameter(0)
  %sum = f32[32,32]{1,0} all-reduce(%param_0), channel_id=7, replica_groups=[1,16]<=[16], to_apply=%add
  %part = u32[] partition-id()
  ROOT %mine = f32[2,32]{1,0} dynamic-slice(%sum, %part), sizes={2,32}
}

%body (arg: (s32[], bf16[4,16], bf16[6,16,32])) -> (s32[], bf16[4,16], bf16[6,16,32]) {
  %arg = (s32[]{:T(128)}, bf16[4,16]{1,0:T(8,128)(2,1)S(1)}, bf16[6,16,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg), index=1
  %ws = bf16[6,16,32]{2,1,0} get-tuple-element(%arg), index=2
  %w = bf16[16,32]{1,0} fusion(%ws, %i), kind=kLoop, calls=%fused_computation.1
  %whole = bf16[16,64]{1,0} all-gather(%w), channel_id=3, replica_groups=mesh['fsdp'=2,'tensor'=8] {'fsdp'}, dimensions={1}
  %y = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %whole), dim_labels=bf_io->bf
  ROOT %out = (s32[], bf16[4,16]{1,0}, bf16[6,16,32]{2,1,0}) tuple(%i, %x, %ws)
}

%condition (arg: (s32[], bf16[4,16], bf16[6,16,32])) -> pred[] {
  %arg = (s32[], bf16[4,16]{1,0}, bf16[6,16,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %constant.6 = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %constant.6), direction=LT
}

ENTRY %main (p0: bf16[4,16], p1: bf16[6,16,32], p2: f32[32,32]) -> f32[2,32] {
  %p0 = bf16[4,16]{1,0} parameter(0)
  %p1 = bf16[6,16,32]{2,1,0} parameter(1)
  %p2 = f32[32,32]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[4,16]{1,0}, /*index=2*/bf16[6,16,32]{2,1,0}) tuple(%zero, %p0, %p1)
  %loop = (s32[], bf16[4,16]{1,0}, bf16[6,16,32]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %all-reduce-scatter.1 = f32[2,32]{1,0} fusion(%p2), kind=kCustom, calls=%all-reduce-scatter.fused
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_runs():
  cost = hlo.cost(TPU)
  assert cost.flops == 6 * 2 * 4 * 64 * 16
  assert set(cost.collectives) == {
    hlo.Collective("all-gather", 6 * 16 * 64 * 2, 2, 6),
    hlo.Collective("reduce-scatter", 32 * 32 * 4, 16, 1),
  }
  # A turn reads one layer and the counter, writes it, and reads what was gathered; x and y are on
  # the chip.
  layer, counter, gathered = 16 * 32 * 2, 4, 16 * 64 * 2
  assert cost.bytes == 6 * (2 * layer + counter + gathered) + 32 * 32 * 4 + 2 * 32 * 4


def test_a_counter_that_makes_strides_runs_less_often():
  """As in loops whose operands arrive piece by piece, of which a turn takes two."""
  turn = "  ROOT %out = (s32[], bf16[4,16]{1,0}, bf16[6,16,32]{2,1,0}) tuple("
  two = "  %two = s32[] constant(2)\n  %next = s32[]{:T(128)S(6)} add(%i, %two)\n"
  assert TPU.count(turn) == 1
  strided = hlo.cost(TPU.replace(f"{turn}%i", f"{two}{turn}%next"))
  assert strided.flops == 3 * 2 * 4 * 64 * 16
  assert [each.count for each in strided.collectives] == [1, 3]


def test_what_is_copied_onto_the_chip_is_read_once():
  end = "  ROOT %all-reduce-scatter.1"
  slices = """  %room = bf16[64,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %begun = ((bf16[64,16]{1,0}), bf16[8,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%room), slice={[0:8], [0:16]}
  %part = bf16[8,16]{1,0:S(1)} slice-done(%begun)
"""  # noqa: E501
  more = hlo.cost(TPU.replace(end, slices + end)).bytes - hlo.cost(TPU).bytes
  assert more == 8 * 16 * 2


def test_products_that_a_library_makes_count():
  made = "%y = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %whole), dim_labels=bf_io->bf"
  dims = 'backend_config={"gemm":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
  call = "%y = (bf16[4,64]{1,0}, s8[9]{0}) custom-call(%x, %whole), custom_call_target="
  assert made in TPU
  library = TPU.replace(made, f'{call}"__cublas$gemm", {dims}')
  assert hlo.cost(library).flops == hlo.cost(TPU).flops
  with pytest.raises(ValueError, match="FLOPs of y are not in the program's text"):
    hlo.cost(TPU.replace(made, f'{call}"__cudnn$convForward"'))


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.cost("HloModule nothing")
  with pytest.raises(ValueError, match="loop loop has no fixed number of turns"):
    hlo.cost(TPU.replace("%constant.6 = s32[] constant(6)", "%constant.6 = s32[] copy(%i)"))


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile()


def test_products_of_a_scan_are_those_of_its_turns():
  w_LDD, x_BD = jnp.ones((5, 32, 32)), jnp.ones((8, 32))
  layer = lambda x_BD, w_DD: jnp.tanh(x_BD @ w_DD)
  scanned = compiled(
    lambda x, w: jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0], x_BD, w_LDD
  )
  assert hlo.cost(scanned.as_text()).flops == 5 * 2 * 8 * 32 * 32


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_products_of_a_convolution_and_its_gradients_are_xlas(stride, padding):
  def loss(x, w):
    out = jax.lax.conv_general_dilated(
      x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(out**2)

  program = compiled(jax.grad(loss, (0, 1)), jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 4)))
  products = program.cost_analysis()["flops"]
  # XLA counts the additions of the sum too.
  assert hlo.cost(program.as_text()).flops == pytest.approx(products, rel=0.1)


def test_a_training_step_asks_for_three_forward_passes_and_the_one_computed_again():
  """6 N D: of a stack whose weights all meet every token; two products a weight and pass."""
  spec = tiny.spec()
  inner = tiny.tokenizer(spec)
  batch = batch_lib.fake(spec, 16)
  sizes = {"layers": 3, "width": 64, "observation": tiny.OBSERVATION | {"hidden": 16}}
  found = {}
  for remat in ("none", "full"):
    policy = tiny.policy(spec, inner, scan=True, remat=remat, **sizes)
    params = policy.init(jax.random.key(0), inner.init(jax.random.key(1)))
    prepared = batch | policy.prepare(params, batch)
    network = params["network"]
    loss = lambda net, params, batch, policy=policy: policy.loss(
      params | {"network": net}, batch, jax.random.key(2)
    )[0]
    program = compiled(jax.grad(loss), network, params, prepared)
    found[remat] = hlo.cost(program.as_text()).flops
    forward = flops.forward(loss, network, params, prepared)
  tokens = 16 * inner.max_tokens
  weights = sum(x.size for x in jax.tree.leaves(network["transformer"]))
  weights += network["to_logits"]["w"].size
  assert flops.TRAINING * forward == pytest.approx(6 * weights * tokens, rel=0.25)
  # The first layer's input needs no gradient: a little less than three.
  assert found["none"] == pytest.approx(flops.TRAINING * forward, rel=0.1)
  assert 1.15 < found["full"] / found["none"] < 1.4
