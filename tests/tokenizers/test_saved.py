"""Saved tokenizers: used alone in three lines; a file that is missing, foreign or broken is said.

That every tokenizer comes back bit for bit stands in test_contract.py.
"""

import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from oat_jax import parameters
from oat_jax import tokenizers
from oat_jax.tokenizers import saved

SPEC = tiny.spec(task_names=("lift", "push"), cameras=(("wrist", 4, 4),), action_names=tuple("xyz"))
BIN = {"name": "bin", "bins": 16}
EXAMPLE = {"name": "examples.linear_tokenizer"}


def made(values, spec=SPEC):
  tokenizer = tokenizers.make(values, spec, tiny.statistics(spec.action_dim, spec.num_datasets))
  if tokenizer.fit is None:
    return tokenizer, jax.jit(tokenizer.init)(jax.random.key(0))
  actions_WCA = np.random.default_rng(0).uniform(-1, 1, (9, 8, spec.action_dim))
  return tokenizer, tokenizer.fit(actions_WCA, np.ones((9, 8), bool), np.zeros(9, int))


@pytest.fixture(scope="module", params=[BIN, EXAMPLE], ids=lambda values: values["name"])
def directory(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("saved") / "deep" / "tokenizer"
  saved.save(path, *made(request.param))
  return path


@pytest.fixture
def copy(directory, tmp_path):
  """A saved tokenizer that a test may break."""
  for name, content in tiny.listing(directory).items():
    (tmp_path / name).write_bytes(content)
  return tmp_path


def change(path, **changes):
  content = json.loads((path / "spec.json").read_text())
  (path / "spec.json").write_text(json.dumps(content | changes))


def test_three_lines_are_enough(tmp_path):
  saved.save(tmp_path / "tokenizer", *made(EXAMPLE))
  code = f"""
import sys
import numpy as np
from oat_jax import tokenizers
actions = np.zeros((2, 8, 3))

tokenizer, params = tokenizers.load({str(tmp_path / "tokenizer")!r})
tokens = tokenizer.encode(params, actions)
actions = tokenizer.decode(params, tokens, num_tokens=2)

assert actions.shape == (2, 8, 3) and np.isfinite(actions).all()
heavy = ("optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "oat_jax.train")
print([name for name in (*heavy, "oat_jax.policies") if name in sys.modules])
"""
  environment = tiny.environment()
  run = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
  assert run.stdout == "[]\n"


def test_a_directory_holds_two_files_that_say_what_they_are(directory):
  tokenizer, params = saved.load(directory)
  assert sorted(tiny.listing(directory)) == ["params.safetensors", "spec.json"]
  assert sorted(path.name for path in directory.parent.iterdir()) == ["tokenizer"]
  content = json.loads((directory / "spec.json").read_text())
  assert content["format_version"] == saved.FORMAT_VERSION
  assert content["config"] == dict(tokenizer.config) and tokenizer.spec == SPEC
  arrays = safetensors.numpy.load_file(directory / "params.safetensors")
  described = {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()}
  assert content["arrays"] == described and "statistics/min" in arrays
  np.testing.assert_array_equal(arrays["statistics/q01"], params["statistics"]["q01"])
  params["statistics"]["q01"][:] = 0  # they belong to whoever loaded them


def test_every_dtype_and_layout_comes_back(tmp_path):
  tokenizer, params = made(BIN)
  rng = np.random.default_rng(0)
  extra = {dtype: rng.integers(0, 2, (3, 2)).astype(dtype) for dtype in parameters.DTYPES}
  extra |= {"scalar": np.int32(7), "empty": np.zeros((0, 3), np.uint8), "column": extra["int8"].T}
  extra |= {"strided": extra["float64"][::2, ::-1], "swapped": np.arange(3, dtype=">i4")}
  params["fitted"] |= {"extra": {"deep": extra}}
  saved.save(tmp_path / "tokenizer", tokenizer, params)
  _, loaded = saved.load(tmp_path / "tokenizer")
  got = loaded["fitted"]["extra"]["deep"]
  assert got.keys() == extra.keys()
  for name, x in extra.items():
    np.testing.assert_array_equal(got[name], x, strict=name != "swapped")


def test_nothing_is_overwritten_or_left_half_written(directory, tmp_path, monkeypatch):
  before = tiny.listing(directory)
  tokenizer, params = made(BIN)
  with pytest.raises(ValueError, match="exists and is no empty directory"):
    saved.save(directory, tokenizer, params)
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match="file exists and is no empty directory"):
    saved.save(tmp_path / "file", tokenizer, params)
  monkeypatch.setattr(saved.json, "dumps", lambda *args, **kwargs: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    saved.save(tmp_path / "new", tokenizer, params)
  assert tiny.listing(directory) == before and list(tiny.listing(tmp_path)) == ["file"]
  monkeypatch.undo()
  (tmp_path / "empty").mkdir()
  saved.save(tmp_path / "empty", tokenizer, params)
  assert saved.load(tmp_path / "empty")[0].config["bins"] == 16


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path):
  tokenizer, params = made(BIN)
  fitted = params["fitted"]
  linear, learned = made(EXAMPLE)
  wide = made(EXAMPLE, tiny.spec(action_horizon=16))[1]
  nan = learned["statistics"] | {"std": np.array([[0, np.nan, 0]], np.float32)}
  for tokenizer_, params_, message in (
    (
      linear,
      learned | {"statistics": nan},
      r"'statistics/std' holds NaN or infinity at .*\[0, 1\]",
    ),
    (linear, learned | {"note": np.array("text")}, "parameter 'note' is <U4; one of bool"),
    (linear, learned | {"more": {}}, "'more' are empty"),
    (linear, learned | {"a/b": np.zeros(1)}, "key 'a/b'; names without '/'"),
    (linear, {"network": learned["network"]}, "parameters hold statistics; these are"),
    (linear, learned | {"extra": np.zeros(2)}, r"'extra': .* has none, .* \['float64', \[2\]\]"),
    (linear, params, r"parameter 'fitted/edges': tokenizer 'examples.linear_tokenizer' .* none"),
    (linear, wide, r"\['float32', \[4, 24\]\], the parameters hold \['float32', \[4, 48\]\]"),
    (tokenizer, learned, "tokenizer 'bin' cannot work with .*'network/w_decode'"),
  ):
    with pytest.raises(ValueError, match=message):
      saved.save(tmp_path / "tokenizer", tokenizer_, params_)
  assert fitted is params["fitted"] and not list(tmp_path.iterdir())


FAST = {"name": "fast", "vocab_size": 512}


def test_parameters_of_another_fit_are_errors(tmp_path):
  (bin_, of_bin), (fast, of_fast) = made(BIN), made(FAST)
  without = {name: x for name, x in of_fast["fitted"].items() if name != "bpe_json"}
  cases = [
    (made(BIN | {"bins": 256})[0], of_bin, r"\[1, 3, 1[56]\]; \[1, 3, 25[56]\] is needed"),
    (bin_, made(BIN | {"bins": 256})[1], r"\[1, 3, 25[56]\]; \[1, 3, 1[56]\] is needed"),
    (fast, of_fast | {"fitted": without}, "fitted are bytes_VX, .* needed are bpe_json, bytes_VX"),
    (fast, of_fast | {"fitted": of_bin["fitted"]}, "fitted are edges, values; needed are bpe_json"),
    (made(FAST | {"vocab_size": 600})[0], of_fast, r"\[512, \d+\]; .*vocab_size is 600"),
  ]
  actions_BCA, tokens_BN = np.zeros((1, 8, 3)), np.full((1, 24), 7, np.int32)
  for tokenizer, params, message in cases:
    with pytest.raises(ValueError, match=message):
      saved.save(tmp_path / "tokenizer", tokenizer, params)
    with pytest.raises(ValueError, match=message):
      tokenizer.encode(params, actions_BCA)
    with pytest.raises(ValueError, match=message):
      tokenizer.decode(params, tokens_BN)
  assert not list(tmp_path.iterdir())
  # Also where a directory's description was changed since.
  saved.save(tmp_path / "tokenizer", bin_, of_bin)
  change(tmp_path / "tokenizer", config=BIN | {"bins": 256}, vocab_size=256)
  with pytest.raises(ValueError, match=r"'bin' cannot work with .*\[1, 3, 15\]; \[1, 3, 255\]"):
    saved.load(tmp_path / "tokenizer")


def test_a_missing_file_is_an_error(copy, tmp_path):
  with pytest.raises(FileNotFoundError, match="absent is no saved tokenizer: it has no spec.json"):
    saved.load(tmp_path / "absent")
  (copy / "params.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"no params.safetensors; it holds \['spec.json'\]"):
    saved.load(copy)


def test_a_foreign_or_broken_parameter_file_is_an_error(copy, directory, tmp_path_factory):
  path = copy / "params.safetensors"
  whole, expected = path.read_bytes(), json.loads((copy / "spec.json").read_text())["sha256"]
  other = tmp_path_factory.mktemp("other") / "tokenizer"
  saved.save(other, *made({"name": "bin", "bins": 8}))
  flipped = whole[:-1] + bytes([whole[-1] ^ 1])
  for content in (whole[:-1], whole[:100], b"", flipped, (other / path.name).read_bytes()):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"cut short, .*{len(content)} bytes .*{expected}"):
      saved.load(copy)
  # Even where both files were exchanged with care.
  path.write_bytes(b"no safetensors")
  change(copy, sha256=hashlib.sha256(b"no safetensors").hexdigest())
  with pytest.raises(ValueError, match="params.safetensors cannot be read"):
    saved.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"format_version": 2, "config": 3}'])
def test_json_that_describes_no_tokenizer_is_an_error(copy, text):
  (copy / "spec.json").write_text(text)
  with pytest.raises(ValueError, match="spec.json is not a tokenizer's description"):
    saved.load(copy)


def test_a_description_that_disagrees_is_an_error(copy):
  content = json.loads((copy / "spec.json").read_text())
  spec, arrays = content["spec"], content["arrays"]
  learned = content["config"]["name"] == EXAMPLE["name"]
  first = sorted(arrays)[0]
  cases = [
    ({"format_version": 1}, "has format version 1; this oat_jax reads version 2"),
    ({"spec": spec | {"action_dimension": 3}}, "not a tokenizer's description.*action_dimension"),
    ({"spec": spec | {"action_dim": 4}}, r"spec.json: the statistics .* \[1, 3\]; \[1, 4\]"),
    ({"config": {"name": "none"}}, "'none'; it must be one of"),
    ({"config": content["config"] | {"wings": 2}}, "spec.json: .*no key 'wings'"),
    ({"vocab_size": 5}, rf"vocab_size 5; .* makes a tokenizer of {content['vocab_size']}"),
    ({"max_tokens": 9}, rf"max_tokens 9; .* makes a tokenizer of {content['max_tokens']}"),
    ({"arrays": arrays | {first: ["int8", [1]]}}, rf"'{first}': .* \['int8', \[1\]\], .*float32"),
    ({"arrays": arrays | {"more": ["int8", [1]]}}, r"'more': .* \['int8', \[1\]\], .* hold none"),
  ]
  if learned:
    cases.append(({"config": EXAMPLE | {"num_tokens": 5}}, r"w_decode.*\[5, 24\].*\[4, 24\]"))
  else:
    cases.append(({"config": EXAMPLE}, "'examples.linear_tokenizer' of this config has"))
  for changes, message in cases:
    change(copy, **(content | changes))
    with pytest.raises(ValueError, match=message):
      saved.load(copy)
  change(copy, **content)
  saved.load(copy)
