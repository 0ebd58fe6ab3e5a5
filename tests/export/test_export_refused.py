"""What is wrong with an export, an observation or a command is said, and a jax that moved on."""

import shutil

from exports import alone
from exports import change
from exports import foreign_functions
from exports import observation
import jax
import numpy as np
import pytest
import tiny

import oat_jax.export
from oat_jax.export import exporter
from oat_jax.export import loader


def test_no_best_step_is_an_error(tokenizer_workdir, tmp_path):
  with pytest.raises(ValueError, match="has no best step, as config.keep_best is not set"):
    exporter.export(tokenizer_workdir, tmp_path / "out", step="best")
  with pytest.raises(ValueError, match="--step=newest: expected a number, or best"):
    exporter.export(tokenizer_workdir, tmp_path / "out", step="newest")
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
    exporter.export(tokenizer_workdir, tmp_path / "out", step="7")
  with pytest.raises(ValueError, match="holds no policy that draws tokens"):
    exporter.export(tokenizer_workdir, tmp_path / "out", temperature=1.0)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"state": None}, r"has no 'state'; it takes \['state', 'task'"),
    ({"image_top": np.zeros((4, 4, 3), np.uint8)}, "has 'image_top', which is not known"),
    ({"state": np.zeros((2, 4))}, r"'state' has shape \[2, 4\]; expected \[5\] behind the 1 axes"),
    ({"state": np.zeros((3, 5))}, "holds 1 rows of 3 moments; the policy looks at 1 to 2"),
    ({"state": np.zeros((0, 2, 5))}, "holds 0 rows"),
    ({"state": np.full(5, np.nan)}, r"'observation/state' holds NaN or infinity at index \[0, 0"),
    ({"state": np.full(5, 1e39)}, "holds NaN or infinity"),
    ({"state": np.array(["a"] * 5)}, "'state' is of dtype <U1; numbers are needed"),
    ({"state": np.array([None] * 5)}, "'state' is of dtype object; numbers are needed"),
    ({"task": None}, "has no 'task'; the policy needs it: one of lift, push"),
    ({"task": "pull"}, "there is no task 'pull'; the policy knows lift, push"),
    ({"task": 2}, r"'task' is 2; it must be a name, or in 0\.\.1"),
    ({"task": 0.5}, "'task' is 0.5; it must be a name"),
    ({"task": ["lift", "push"]}, "'task' has 2 values for 1 rows"),
  ],
)
def test_a_wrong_observation_is_an_error(changed, message, loaded):
  seen = {k: v for k, v in (observation() | changed).items() if v is not None}
  with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
    loaded.act(seen)


@pytest.mark.parametrize("last", [np.full(3, np.nan), np.full(3, 1e39), np.zeros(1)])
def test_a_last_action_that_is_none_is_an_error(last, loaded):
  with pytest.raises(ValueError, match="the last action holds"):
    loaded.act(observation(), last_action=last)


@pytest.mark.parametrize("name", ["params.safetensors", "act.jax_exported", "spec.json"])
def test_a_missing_or_broken_file_is_an_error_that_names_it(name, copy, capsys):
  whole = (copy / name).read_bytes()
  (copy / name).unlink()
  with pytest.raises(FileNotFoundError, match=name):
    loader.load(copy)
  for data in (whole[: len(whole) // 2], b"", b"\0" * len(whole)):
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
      loader.load(copy)
  assert loader.main([str(copy), "--check"]) == 1
  assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_of_another_export_is_an_error(copy, tokenizer_workdir, tmp_path):
  exporter.export(tokenizer_workdir, tmp_path / "other")
  shutil.copy(tmp_path / "other" / "decode.jax_exported", copy)
  shutil.copy(tmp_path / "other" / "params.safetensors", copy)
  with pytest.raises(ValueError, match="cut short, changed or another export's"):
    loader.load(copy)
  change(copy, sha256={"../../secret": "0"})
  with pytest.raises(ValueError, match="spec.json does not describe an export"):
    loader.load(copy)


@pytest.mark.parametrize("version", [0, 2, "new"])
def test_an_export_of_another_version_says_what_to_do(version, copy):
  change(copy, format_version=version)
  with pytest.raises(ValueError, match=f"has format version {version}; .* reads version 1: "):
    loader.load(copy)


def test_nothing_is_overwritten(export, policy_workdir):
  before = tiny.listing(export)
  with pytest.raises(ValueError, match="exists and is no empty directory"):
    exporter.export(policy_workdir, export)
  assert tiny.listing(export) == before


@pytest.mark.parametrize(
  ("limits", "message"),
  [
    ({"low": [0.0], "high": [1.0], "rate": None}, "limits of 1 dimensions; the policy has 3"),
    ({"low": [1.0] * 3, "high": [0.0] * 3, "rate": None}, "limits of dimension 0"),
  ],
)
def test_limits_that_do_not_fit_are_an_error(limits, message, copy):
  change(copy, limits=limits)
  with pytest.raises(ValueError, match=message):
    oat_jax.export.load(copy)


@pytest.mark.parametrize("what", ["convention", "program"])
def test_functions_of_another_jax_are_noticed_when_they_are_loaded(what, copy, capsys, monkeypatch):
  if what == "convention":
    monkeypatch.setattr(loader.export, "minimum_supported_calling_convention_version", 99)
    monkeypatch.setattr(loader.export, "maximum_supported_calling_convention_version", 99)
    message = "it has calling convention 10; this jax takes 99 to 99"
  else:
    whole = loader.export.Exported.mlir_module

    def unreadable(self, **settings):
      if settings:  # of exporting, not of reading
        return whole(self, **settings)
      raise ValueError("failed to parse a newer StableHLO")

    monkeypatch.setattr(loader.export.Exported, "mlir_module", unreadable)
    message = "failed to parse a newer StableHLO"
  again = oat_jax.export.load(copy)
  assert message in again.rebuilt and message in capsys.readouterr().err
  assert again.act(observation())[0].shape == (8, 3)


def test_functions_that_cannot_be_read_are_built_anew(copy, loaded, capsys):
  foreign_functions(copy)
  again = oat_jax.export.load(copy)
  assert again.rebuilt and "built anew from the parameters" in capsys.readouterr().err
  assert all(row.passed for row in again.check())
  for seed in range(3):
    chunk_CA, _ = loaded.act(observation(), seed=seed)
    np.testing.assert_array_equal(again.act(observation(), seed=seed)[0], chunk_CA)


def test_without_these_packages_foreign_functions_say_what_to_install(copy):
  foreign_functions(copy)
  run = alone("import oat_jax.export; oat_jax.export.load(sys.argv[1])", copy)
  assert run.returncode and f"jax=={jax.__version__}" in run.stderr.splitlines()[-1]
  assert "install 'oat-jax[train]'" in run.stderr.splitlines()[-1]
