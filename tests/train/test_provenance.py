"""What a run says of itself, and older working directories."""

import json

import pytest
import tiny

from oat_jax.train import agreement
from oat_jax.train import inputs
from oat_jax.train import provenance
from oat_jax.train import workdir as workdir_lib


def test_a_run_says_what_made_it_and_what_it_is_measured_on(tokenizer_workdir, dataset):
  facts = provenance.read(tokenizer_workdir)
  assert facts["code"] == [agreement.code()] and facts["kind"] == "tokenizer"
  split = inputs.load(tiny.run_config("tokenizer", dataset).data)
  assert facts["windows"] == len(split.train) and facts["episodes"] == 7
  assert facts["bits_per_token"] == pytest.approx(9.966, abs=1e-3)
  assert facts["parameters"] > 1000 and facts["flops_per_step"] > 6 * facts["parameters"]


def test_a_run_that_goes_on_with_other_code_says_both(tmp_path, monkeypatch):
  facts = dict.fromkeys(provenance.KEYS, 1)
  provenance.write(tmp_path, facts)
  provenance.write(tmp_path, facts)
  assert provenance.read(tmp_path)["code"] == [agreement.code()]
  other = {"oat_jax": "0.2.0 abc", "jax": "0.11"}
  monkeypatch.setattr(agreement, "code", lambda: other)
  provenance.write(tmp_path, facts)
  assert [each == other for each in provenance.read(tmp_path)["code"]] == [False, True]


@pytest.mark.parametrize(
  ("content", "message"),
  [(None, "is missing"), ("[", "not what a run writes"), ("[]", "not what a run writes"),
   ('{"code": []}', "has no 'kind'")],
)  # fmt: skip
def test_what_is_no_provenance_is_said(tmp_path, content, message):
  if content is not None:
    (tmp_path / "provenance.json").write_text(content)
  with pytest.raises(ValueError, match=message):
    provenance.read(tmp_path)


def test_losses_are_of_windows_units_and_tokens(dataset):
  split = inputs.load(tiny.run_config("tokenizer", dataset).data)
  held_out, actions = inputs.evenly(split.validation, 20), split.statistics["actions"]
  wider = actions | {"max": actions["max"] + 1}
  found = [
    provenance.evaluation_set(*each)
    for each in (
      (held_out, actions, "min_max", ""),
      (inputs.evenly(split.validation, 19), actions, "min_max", ""),
      (held_out, wider, "min_max", ""),
      (held_out, actions, "quantiles", ""),
      (held_out, actions, "min_max", "a tokenizer"),
    )
  ]
  assert len(set(found)) == len(found)


def test_a_working_directory_without_a_setting_that_came_later_goes_on(tmp_path, dataset):
  from oat_jax.train import loop

  loop.train(tiny.run_config("tokenizer", dataset, steps=3), tmp_path)
  content = json.loads((tmp_path / "config.json").read_text())
  del content["config"]["data"]["train_fraction"]
  (tmp_path / "config.json").write_text(json.dumps(content))
  loop.train(tiny.run_config("tokenizer", dataset, steps=3), tmp_path)
  assert not workdir_lib.in_use(tmp_path)
  content["config"]["data"]["train_fraction"] = 0.5
  (tmp_path / "config.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match="config.data.train_fraction: 0.5 there, 1.0 now"):
    loop.train(tiny.run_config("tokenizer", dataset, steps=3), tmp_path)
