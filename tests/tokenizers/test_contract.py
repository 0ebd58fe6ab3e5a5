"""What holds for every tokenizer, also for one that lives outside oat_jax; see `Tokenizer`."""

import json
import subprocess
import sys

from contract import A
from contract import batch
from contract import BOTH
from contract import C
from contract import Case
from contract import CASES
from contract import columns
from contract import make
from contract import make_params
from contract import program
from contract import SPEC
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import numpy as np
import pytest
import tiny

from oat_jax import tokenizers
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import saved
from oat_jax.train import optimizer


@pytest.fixture(scope="module", params=CASES)
def case(request):
  tokenizer = make(CASES[request.param])
  return Case(request.param, tokenizer, make_params(tokenizer))


def random_tokens(case, B=2, seed=0):
  return np.random.default_rng(seed).integers(
    0, case.tokenizer.vocab_size, (B, case.tokenizer.max_tokens), np.int32
  )


def check_chunks(case, chunks_BCA):
  chunks_BCA, known = np.asarray(chunks_BCA), case.params["statistics"]
  assert chunks_BCA.shape == (2, C, A) and chunks_BCA.dtype == np.float32
  assert np.isfinite(chunks_BCA).all()
  assert (chunks_BCA >= np.asarray(known["min"])[:, None]).all()
  assert (chunks_BCA <= np.asarray(known["max"])[:, None]).all()


def test_static_facts_agree(case):
  tokenizer = case.tokenizer
  learned = [tokenizer.init is not None, tokenizer.axes is not None, tokenizer.loss is not None]
  assert all(learned) != (tokenizer.fit is not None) and any(learned) == all(learned)
  assert list(tokenizer.budgets) == sorted(set(tokenizer.budgets))
  assert tokenizer.budgets[-1] == tokenizer.max_tokens and tokenizer.budgets[0] >= 1
  assert tokenizer.pad_id is None or 0 <= tokenizer.pad_id < tokenizer.vocab_size
  assert tokenizer.config["name"] == CASES[case.name]["name"]
  assert make(tokenizer.config).config == tokenizer.config
  groups = optimizer.groups(case.params)
  frozen = {name for name in case.params if "frozen" in jax.tree.leaves(groups[name])}
  assert frozen == case.params.keys() - {"network"} and "statistics" in frozen


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_tokens_and_any_prefix_give_a_chunk_inside_the_training_range(case, data):
  N, V = case.tokenizer.max_tokens, case.tokenizer.vocab_size
  tokens_BN = data.draw(hnp.arrays(np.int32, (2, N), elements=st.integers(0, V - 1)))
  K = data.draw(st.integers(1, N))
  check_chunks(case, case.tokenizer.decode(case.params, tokens_BN, K, BOTH))


def test_decode_is_total_even_where_the_boundary_cannot_look(case):
  N, V = case.tokenizer.max_tokens, case.tokenizer.vocab_size
  edges = np.array([-(2**31), -1, V, 2**31 - 1, 0, V - 1, 5, 7], np.int32)
  tokens_BN = np.stack([np.resize(edges, N), np.resize(edges[::-1], N)])
  for K in (-3, 0, 1, N, N + 1, 2**31 - 1):  # traced: no Python error can help
    check_chunks(case, case.decode(case.params, tokens_BN, K, BOTH))


def test_a_prefix_ignores_what_lies_beyond_it_and_counts_as_the_budget_below(case):
  N, V = case.tokenizer.max_tokens, case.tokenizer.vocab_size
  # Of real chunks: strict decoding gives any others the same chunk.
  tokens_BN, rng = encode(case, batch(2)), np.random.default_rng(9)
  decode = lambda tokens, K: np.asarray(case.tokenizer.decode(case.params, tokens, K, BOTH))
  for K in range(1, N + 1):
    below = max(budget for budget in case.tokenizer.budgets if budget <= K or budget == 1)
    other_BN = tokens_BN.copy()
    other_BN[:, below:K] = rng.integers(0, V, (2, K - below))
    other_BN[:, K:] = rng.integers(-5, 2**31 - 1, (2, N - K))  # ids that there are not
    np.testing.assert_array_equal(decode(other_BN, K), decode(tokens_BN, below))
  assert not np.array_equal(decode(tokens_BN, case.tokenizer.budgets[0]), decode(tokens_BN, N))
  np.testing.assert_array_equal(
    case.tokenizer.decode(case.params, tokens_BN, dataset=BOTH), decode(tokens_BN, N)
  )


def test_one_compiled_program_serves_every_prefix(case):
  N, tokens_BN = case.tokenizer.max_tokens, random_tokens(case)
  case.tokenizer.decode(case.params, tokens_BN, 1, BOTH)
  # The same at the Python boundary, whose own jit must not take K for a constant.
  with jax.no_tracing():
    alone = [case.tokenizer.decode(case.params, tokens_BN, K, BOTH) for K in range(1, N + 1)]
  for K in range(1, N + 1):
    traced_BCA = case.decode(case.params, tokens_BN, K, BOTH)
    np.testing.assert_allclose(traced_BCA, alone[K - 1], atol=1e-5)
  assert len(case.traces) == 1


def encode(case, made, rows=slice(None)):
  rows_of = (x[rows] for x in columns(made))
  return np.asarray(case.tokenizer.encode(case.params, *rows_of))


@pytest.fixture(scope="module")
def traced(case):
  """Tokens of `batch()` from inside another compiled program, and which of them lie so near a
  boundary between codes, 1e-4, that rounding may decide.
  """
  with pytest.MonkeyPatch.context() as patch:
    seen, quantize = [], fsq.quantize
    spy = lambda z, levels: seen.append((z, levels)) or quantize(z, levels)
    patch.setattr(fsq, "quantize", spy)

    @jax.jit
    def run(params, made):
      tokens_BN = case.tokenizer.encode(params, *columns(made))
      return tokens_BN, [fsq._bound(z, levels) for z, levels in seen]

    tokens_BN, bounded = jax.device_get(run(case.params, batch()))
  near_BN = np.zeros(tokens_BN.shape, bool)
  for x_BNL in bounded:
    near_BN |= (np.abs(x_BNL - np.floor(x_BNL) - 0.5) < 1e-4).any(-1)
  assert len(bounded) == ("levels" in case.tokenizer.config or case.name == "example")
  assert near_BN.mean() < 0.01
  return tokens_BN, near_BN


def test_tokens_are_in_range_and_depend_on_the_actions(case):
  tokens_BN, V = encode(case, batch()), case.tokenizer.vocab_size
  assert tokens_BN.shape == (16, case.tokenizer.max_tokens) and tokens_BN.dtype == np.int32
  assert tokens_BN.min() >= 0 and tokens_BN.max() < V
  assert len(np.unique(tokens_BN, axis=0)) >= 14
  if case.tokenizer.decodable is not None:
    decodable_B = np.asarray(jax.jit(case.tokenizer.decodable)(case.params, tokens_BN))
    assert decodable_B.shape == (16,) and decodable_B.dtype == bool and decodable_B.all()


def test_tokens_do_not_depend_on_batch_size_padding_other_rows_or_jit(case, traced):
  made, (wanted_BN, near_BN) = batch(), traced

  def same(found_BN, rows=slice(None)):
    # Elsewhere they are equal: as many may differ as lie near a boundary.
    np.testing.assert_array_equal(
      np.where(near_BN[rows], 0, found_BN), np.where(near_BN[rows], 0, wanted_BN[rows])
    )

  same(encode(case, made))
  same(encode(case, made, slice(3, 5)), slice(3, 5))
  hidden_BCA = ~np.broadcast_to(made["action_mask"][..., None], made["actions"].shape)
  assert hidden_BCA.any()
  same(encode(case, made | {"actions": np.where(hidden_BCA, np.nan, made["actions"])}))
  others_BCA = np.where(np.arange(16)[:, None, None] == 5, made["actions"], 1e3)
  same(encode(case, made | {"actions": others_BCA.astype(np.float32)})[5:6], slice(5, 6))
  if case.name not in ("oat_blocks", "quest"):  # made of what oat is made of; it takes seconds
    with jax.disable_jit():
      same(encode(case, made))


def test_each_dataset_of_a_mixture_has_its_own_units(case):
  known = {name: np.asarray(x)[:, None] for name, x in case.params["statistics"].items()}
  same_CA = np.random.default_rng(0).uniform(-0.9, 0.9, (C, A))
  actions_BCA = (known["offset"] + same_CA / known["scale"]).astype(np.float32)
  made = {"actions": actions_BCA, "action_mask": np.ones((2, C), bool), "dataset": BOTH}
  tokens_BN = encode(case, made)
  np.testing.assert_array_equal(tokens_BN[0], tokens_BN[1])
  assert (encode(case, made | {"dataset": BOTH[::-1]}) != tokens_BN).any()
  chunks_BCA = np.asarray(case.tokenizer.decode(case.params, tokens_BN, dataset=BOTH))
  free_CA = ((chunks_BCA > known["min"]) & (chunks_BCA < known["max"])).all(0)
  assert free_CA.any()
  normal_BCA = (chunks_BCA - known["offset"]) * known["scale"]
  np.testing.assert_allclose(normal_BCA[0][free_CA], normal_BCA[1][free_CA], atol=1e-4)


def normalized_mse_B(params, made, actions_BCA):
  row = lambda name: np.asarray(params["statistics"][name])[made["dataset"]][:, None]
  error_BCA = (np.asarray(actions_BCA, np.float64) - made["actions"]) * row("scale")
  mask_BCA = made["action_mask"][..., None] & made["action_dim_mask"][:, None]
  return np.array([np.square(error[mask]).mean() for error, mask in zip(error_BCA, mask_BCA)])


def test_evaluate_is_the_error_of_decoded_chunks(case):
  made, tokenizer = batch(2), case.tokenizer
  values = jax.jit(tokenizer.evaluate)(case.params, made)
  tokens_BN = np.asarray(values["tokens"])
  np.testing.assert_array_equal(tokens_BN, encode(case, made))
  for K in range(1, tokenizer.max_tokens + 1):
    decoded_BCA = tokenizer.decode(case.params, tokens_BN, K, made["dataset"])
    wanted_B = normalized_mse_B(case.params, made, decoded_BCA)
    np.testing.assert_allclose(values["mse"][:, K - 1], wanted_B, rtol=1e-3)


def test_bad_actions_are_errors(case):
  good = np.zeros((2, C, A), np.float32)
  late = np.arange(C)[None] > 5
  for actions, mask, dataset, message in (
    (np.zeros((2, C, A + 1)), None, BOTH, r"\[2, 8, 4\]; expected \[B, 8, 3\]"),
    (np.zeros((2, C - 1, A)), None, BOTH, r"\[2, 7, 3\]; expected \[B, 8, 3\]"),
    (good[0], None, BOTH, r"\[8, 3\]; expected \[B, 8, 3\]"),
    (good, np.ones((2, C - 1), bool), BOTH, r"mask has shape \[2, 7\]; expected \[2, 8\]"),
    (good * np.nan, None, BOTH, r"NaN or infinity at .* \[0, 0, 0\]"),
    (good - np.inf, None, BOTH, r"NaN or infinity at .* \[0, 0, 0\]"),
    (good[:1] * np.nan, late, BOTH[:1], r"NaN or infinity at .* \[0, 6, 0\]"),
    (good, None, None, "there are 2 datasets"),
    (good, None, BOTH[:1], r"dataset has shape \[1\]; expected \[2\]"),
    (good, None, np.array([0, 2]), r"dataset \[0, 2\] is outside 0..1"),
    (good, None, np.array([-1, 0]), r"dataset \[-1, 0\] is outside 0..1"),
  ):
    with pytest.raises(ValueError, match=message):
      case.tokenizer.encode(case.params, actions, mask, dataset)


@pytest.mark.parametrize("case", ["bin", "fast", "fast_strict"], indirect=True)
def test_bad_chunks_to_fit_are_errors(case):
  fit = case.tokenizer.fit
  good, all_BC = np.zeros((2, C, A), np.float32), np.ones((2, C), bool)
  for actions, mask, dataset, message in (
    (good[:, 1:], all_BC[:, 1:], BOTH, r"fit: actions .* \[2, 7, 3\]; expected \[B, 8, 3\]"),
    (good, all_BC[:, 1:], BOTH, r"fit: the mask has shape \[2, 7\]; expected \[2, 8\]"),
    (good * np.nan, all_BC, BOTH, r"fit: actions hold NaN or infinity at .* \[0, 0, 0\]"),
    (good, all_BC, np.array([0, 2]), r"dataset \[0, 2\] is outside 0..1"),
    (good, all_BC, BOTH[:1], r"dataset has shape \[1\]; expected \[2\]"),
  ):
    with pytest.raises(ValueError, match=message):
      fit(actions, mask, dataset)


def test_bad_tokens_are_errors(case):
  N, V = case.tokenizer.max_tokens, case.tokenizer.vocab_size
  good = np.zeros((2, N), np.int32)
  third = np.where(np.arange(N) == 2, -1, good)
  for tokens, K, dataset, message in (
    (good, 0, BOTH, rf"num_tokens is 0; it must be in 1..{N}"),
    (good, N + 1, BOTH, rf"num_tokens is {N + 1}; it must be in 1..{N}"),
    (good, np.int32(-1), BOTH, "num_tokens is -1"),
    (good, 1.0, BOTH, r"num_tokens is 1.0; it must be one integer"),
    (good, np.array([1, 2]), BOTH, "it must be one integer"),
    (good + V, N, BOTH, rf"token {V} at .* \[0, 0\] is outside 0..{V - 1}"),
    (third, 3, BOTH, r"token -1 at .* \[0, 2\] is outside"),
    (good[:, :-1], 1, BOTH, rf"int32\[2, {N - 1}\]; expected integers of shape \[B, {N}\]"),
    (good[0], 1, BOTH, rf"expected integers of shape \[B, {N}\]"),
    (good + 0.0, 1, BOTH, rf"float\d+\[2, {N}\]; expected integers"),
    (good, 1, None, "there are 2 datasets"),
    (good, 1, np.array([0, 2]), r"dataset \[0, 2\] is outside 0..1"),
  ):
    with pytest.raises(ValueError, match=message):
      case.tokenizer.decode(case.params, tokens, K, dataset)


def test_bad_configurations_are_errors(case):
  values = CASES[case.name]
  with pytest.raises(ValueError, match=r"the statistics have shape \[2, 4\]; \[2, 3\]"):
    tokenizers.make(values, SPEC, tiny.statistics(A + 1, 2))
  with pytest.raises(ValueError, match=r"the statistics have shape \[1, 3\]; \[2, 3\]"):
    tokenizers.make(values, SPEC, tiny.statistics(A))
  with pytest.raises(ValueError, match="config.model has no key 'widht'"):
    make(values, widht=32)
  if "levels" in case.tokenizer.config:
    for levels in ((8, 1), (), (8, -5)):
      with pytest.raises(ValueError, match="every level must be at least 2"):
        make(values, levels=levels)
    with pytest.raises(ValueError, match=r"levels \(64, .*\) make 1,073,741,824 codes; at most"):
      make(values, levels=(64,) * 5)
  if case.tokenizer.init is not None:
    unable = tokenizers.make(values, SPEC)
    with pytest.raises(ValueError, match="statistics of the training actions"):
      jax.eval_shape(unable.init, jax.random.key(0))


def test_saving_keeps_every_bit_and_every_token(case, tmp_path):
  saved.save(tmp_path / "tokenizer", case.tokenizer, case.params)
  tokenizer, params = saved.load(tmp_path / "tokenizer")
  assert tiny.to_bits(params) == tiny.to_bits(case.params)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  facts = ("spec", "vocab_size", "max_tokens", "budgets", "prefix_decodable", "pad_id", "config")
  for fact in facts:
    assert getattr(tokenizer, fact) == getattr(case.tokenizer, fact)
  made, tokens_BN = batch(2), random_tokens(case)
  np.testing.assert_array_equal(tokenizer.encode(params, *columns(made)), encode(case, made))
  decode = lambda t: program(t.decode, params, tokens_BN, 2, BOTH)
  assert decode(tokenizer) == decode(case.tokenizer)


def test_parameters_may_be_constants_of_another_program(case):
  params = jax.tree.map(np.asarray, case.params)  # as `load` returns them

  def both(actions_BCA, mask_BC, dataset_B):
    tokens_BN = case.tokenizer.encode(params, actions_BCA, mask_BC, dataset_B)
    return case.tokenizer.decode(params, tokens_BN, 2, dataset_B)

  shapes = jax.eval_shape(both, *columns(batch(2)))
  assert shapes.shape == (2, C, A) and shapes.dtype == np.float32


DEVICES = """
import json, sys
import jax
import numpy as np
sys.path.insert(0, "tests/tokenizers")
import contract
from oat_jax.parallel import mesh as mesh_lib

out = {}
mesh = mesh_lib.make_mesh((4, 1, 1))
for name in sys.argv[1:]:
  tokenizer = contract.make(contract.CASES[name])
  params = contract.make_params(tokenizer)
  made = jax.device_put(contract.batch(), mesh_lib.batch_sharding(mesh))
  params = jax.device_put(params, mesh_lib.replicated(mesh))
  tokens_BN = tokenizer.encode(params, *contract.columns(made))
  assert len(tokens_BN.sharding.device_set) == 4
  out[name] = np.asarray(tokens_BN).tolist()
print(json.dumps(out))
"""


ON_DEVICES = ("oat", "oat_blocks", "quest", "vq", "bin", "example")


@pytest.fixture(scope="module")
def on_four_devices():
  flags = "--xla_force_host_platform_device_count=4"
  environment = tiny.environment(**tiny.quick(flags))
  command = [sys.executable, "-c", DEVICES, *ON_DEVICES]
  run = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ON_DEVICES, indirect=True)
def test_tokens_do_not_depend_on_the_number_of_devices(case, traced, on_four_devices):
  tokens_BN, near_BN = traced
  found_BN = np.array(on_four_devices[case.name])
  np.testing.assert_array_equal(np.where(near_BN, 0, found_BN), np.where(near_BN, 0, tokens_BN))
