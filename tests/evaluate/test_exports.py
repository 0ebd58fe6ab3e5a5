"""An export acts in an evaluation as its policy does, in this process and behind a server."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from oat_jax.evaluate import described
from oat_jax.evaluate import evaluation
from oat_jax.evaluate import exported
from oat_jax.evaluate import run
from oat_jax.evaluate import subject
from oat_jax.export import directory
from oat_jax.export import exporter
from oat_jax.export import limits
from oat_jax.export import loader
from oat_jax.serve import service
from oat_jax.study import trained
from oat_jax.train import config
from oat_jax.train import models

server = pytest.importorskip("served")  # skips where the extra `serve` is not installed
remote = pytest.importorskip("oat_jax.evaluate.remote")

TASKS = ("push", "lift", "push")
EVERY = np.ones(3, bool)


@pytest.fixture
def here(policy_export):
  return exported.Exported(policy_export)


@pytest.fixture(scope="module")
def policy(policy_export):
  return loader.load(policy_export)


@pytest.fixture(scope="module")
def served(policy):
  with server.serving(policy, max_batch=4) as (port, _, _):
    with remote.Remote(f"127.0.0.1:{port}") as made:
      yield made


def acted(who, K, stop=False, active_B=EVERY, last_BA=None):
  return subject.driver(who, TASKS, K, stop)(tiny.simulated(), active_B, last_BA)


@pytest.mark.parametrize("K", [1, 4, 8])
def test_all_three_ways_give_the_same_chunks(here, served, policy_export, K):
  """But for the limits, which those who trained the policy are not held to."""
  own = trained.Trained(models.load(policy_export.parent / "run"))
  wanted = acted(own, K)
  allowed_BCA = limits.apply(here._policy().limits, wanted.actions_BCA)
  assert not np.array_equal(allowed_BCA, wanted.actions_BCA), "the limits hold nothing"
  for who in (here, served):
    found = acted(who, K)
    np.testing.assert_allclose(found.actions_BCA, allowed_BCA, rtol=0, atol=1e-5)
    assert found.num_tokens_B.tolist() == wanted.num_tokens_B.tolist() == [K] * 3
    assert found.ms > 0


def test_the_rate_counts_from_what_was_executed_last_where_something_was(here, served):
  rate_A = here.limits.rate_A
  free = acted(here, 8).actions_BCA
  last_BA = np.full((3, 3), np.nan, np.float32)
  last_BA[1] = np.clip(free[1, 0] + 10 * rate_A, here.limits.low_A, here.limits.high_A)
  last_BA[1] = np.where(last_BA[1] > free[1, 0] + rate_A, last_BA[1], here.limits.low_A)
  for who in (here, served):
    found = acted(who, 8, last_BA=last_BA).actions_BCA
    np.testing.assert_allclose(found[[0, 2]], free[[0, 2]], rtol=0, atol=1e-5)
    assert (np.abs(found[1, 0] - last_BA[1]) <= rate_A + 1e-6).all()
    assert not np.allclose(found[1, 0], free[1, 0], atol=1e-3)


def test_reports_of_both_ways_say_the_same_of_the_model(here, served, policy_export):
  own = trained.Trained(models.load(policy_export.parent / "run"), policy_export.parent / "run")
  apart = {"server": served.facts["server"]}
  assert here.facts["server"] is None and served.facts["server"]["jax"] == jax.__version__
  assert served.facts == here.facts | apart
  assert here.facts["model"] == own.facts["model"] and here.facts.keys() == own.facts.keys()
  for name in ("spec", "state", "method", "max_tokens", "acts", "refines", "shown"):
    assert getattr(here, name) == getattr(served, name) == getattr(own, name), name
  assert here.reconstructs and own.reconstructs and not served.reconstructs


def test_chunks_that_end_early_spend_what_the_export_knows(here, served):
  (K, tolerance), *_ = here.tolerances([4]).items()
  assert (K, served.tolerances([4])) == ("4", {"4": tolerance})
  first, second = (acted(who, 4, stop=True) for who in (here, served))
  assert first.num_tokens_B.tolist() == second.num_tokens_B.tolist()
  with pytest.raises(ValueError, match="num_tokens 8 cannot be spent on average"):
    here.tolerances([8])


def test_a_servers_own_deadline_does_not_count(policy, here):
  with server.serving(policy, deadline_ms=1e-6, max_batch=2) as (port, _, _):
    with remote.Remote(f"127.0.0.1:{port}") as made:
      for stop in (False, True):
        spent_B = acted(made, 4, stop).num_tokens_B
        assert spent_B.tolist() == acted(here, 4, stop).num_tokens_B.tolist()


def test_a_report_is_of_one_server_or_of_none(here, tmp_path):
  here.spec = dataclasses.replace(here.spec, action_dim=4)
  make = lambda: evaluation.Evaluation(here, "metaworld/mt4", tmp_path, replans=(8,))
  there = make().facts | {"act_ms": {}, "restarts": [], "tolerances": {}}
  content = {"facts": there | {"server": {"jax": "0.10.2"}}, "episodes": []}
  (tmp_path / "evaluation.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match="is of another evaluation .server .*None now"):
    make()


def test_only_active_episodes_are_asked_for(served):
  requests = served_requests(served)
  found = acted(served, 8, active_B=np.array([False, True, False]))
  assert served_requests(served) == requests + 1
  assert found.num_tokens_B.tolist() == [0, 8, 0] and not found.actions_BCA[0].any()


def served_requests(served):
  text = server.get(int(served._address.rpartition(":")[2]), "/metrics")[1]
  line = next(line for line in text.splitlines() if line.startswith("oat_jax_requests_total"))
  return float(line.split()[-1])


def test_a_tokenizer_reconstructs_here_as_where_it_was_trained(here, policy_export):
  own = trained.Trained(models.load(policy_export.parent / "run"))
  chunks_BCA = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8, 3)).astype(np.float32)
  for K in (3, 8):
    first, second = (who.reconstruct(chunks_BCA, K) for who in (here, own))
    np.testing.assert_allclose(first.actions_BCA, second.actions_BCA, rtol=0, atol=1e-5)
    assert first.num_tokens_B.tolist() == second.num_tokens_B.tolist() == [K] * 3


def test_milliseconds_are_measured_on_what_there_is(here, served):
  for who, stop, keys in ((here, False, ["2"]), (here, True, ["2"]), (served, False, ["2"])):
    found = subject.latency_ms(who, [2], stop, calls=9)
    assert list(found) == keys and 0 < found["2"]["p50"] <= found["2"]["p95"]
  assert subject.latency_ms(served, [2], True, calls=9) == {}


def test_a_server_that_comes_back_is_asked_again_and_another_policy_refused(policy):
  with server.serving(policy, max_batch=2) as (port, _, _):
    made = remote.Remote(f"127.0.0.1:{port}")
    before = acted(made, 2)
  with server.serving(policy, max_batch=2, port=port):
    after = acted(made, 2)
    np.testing.assert_allclose(after.actions_BCA, before.actions_BCA, rtol=0, atol=1e-5)
    made._told = made._told | {"model": "another"}
    for connection in made._idle:
      connection.close()
    with pytest.raises(ValueError, match="serves another policy by now"):
      acted(made, 2)
  with pytest.raises(ConnectionError, match="no server answers at .*oat-jax-serve"):
    acted(made, 2)
  made.__exit__()


def test_a_server_that_answers_otherwise_is_an_error(policy, monkeypatch):
  token = "a token of 16 or more".replace(" ", "")
  with server.serving(policy, token=token, max_batch=2) as (port, _, _):
    with pytest.raises(ValueError, match="refuses: a token is needed"):
      remote.Remote(f"ws://127.0.0.1:{port}")
    with remote.Remote(f"ws://127.0.0.1:{port}", token) as made:
      assert acted(made, 2).actions_BCA.shape == (3, 8, 3)
      made.spec = dataclasses.replace(made.spec, task_names=("push", "lift", "turn"))
      with pytest.raises(RuntimeError, match="answers: ValueError: 'task' is 2"):
        subject.driver(made, ("turn",) * 3, 2)(tiny.simulated(), EVERY, None)
  told = {"keymap": {"state": ["observation/state"], "images": {}}}
  metadata = service.Service.metadata
  monkeypatch.setattr(service.Service, "metadata", lambda self: metadata(self) | told)
  with server.serving(policy, max_batch=2) as (port, _, _):
    with pytest.raises(ValueError, match="start the server without --keymap"):
      remote.Remote(f"127.0.0.1:{port}")
  monkeypatch.setattr(
    service.Service, "metadata", lambda self: {"server": "older", "observation_steps": 2}
  )
  with server.serving(policy, max_batch=2) as (port, _, _):
    with pytest.raises(ValueError, match="does not tell what its policy is"):
      remote.Remote(f"127.0.0.1:{port}")
  with pytest.raises(ConnectionError, match="no server answers at ws://127.0.0.1:9"):
    remote.Remote("127.0.0.1:9")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"units": "standardised from bridge"}, "actions and states standardised from bridge; the"),
    ({"batch": {"num_datasets": 2}}, "actions and states of 2 datasets; the simulator"),
  ],
)
def test_what_no_simulator_takes_is_refused(policy_export, changes, message):
  told = directory.description(directory.read(policy_export).spec)
  told |= {"units": changes.get("units", told["units"])}
  told["batch"] = told["batch"] | changes.get("batch", {})
  with pytest.raises(ValueError, match=message):
    described.Described("E", told)


def test_goals_that_were_demonstrated_are_refused_wherever_the_export_is(policy_export, tmp_path):
  shutil.copytree(policy_export, tmp_path / "E")
  path = tmp_path / "E" / "spec.json"
  shown = {"suite": "metaworld/mt50", "begin": 0, "end": 60}
  content = json.loads(path.read_text()) | {"demonstrated": shown}
  content["batch"] = content["batch"] | {"action_dim": 3}
  path.write_text(json.dumps(content))
  who = exported.Exported(tmp_path / "E")
  assert who.shown == shown
  who.spec = dataclasses.replace(who.spec, action_dim=4)
  with pytest.raises(ValueError, match=r"seeds 59\.\.60 were demonstrated"):
    evaluation.Evaluation(who, "metaworld/mt4", tmp_path, episodes=2, seeds=(59,), replans=(8,))


def test_an_export_says_what_its_numbers_mean():
  of = lambda **data: exporter._units(config.freeze(tiny.run_values("policy", "D", data=data)).data)
  assert of() == "of the dataset"
  assert of(states=("state_1", "state_0")) == of(actions=("action_0",)) == "rearranged"


def test_an_export_of_before_demonstrations_were_noted_is_read(policy_export, tmp_path):
  shutil.copytree(policy_export, tmp_path / "E")
  path = tmp_path / "E" / "spec.json"
  content = json.loads(path.read_text())
  del content["demonstrated"]
  content["of_tomorrow"] = 1  # what a reader does not know is left out
  path.write_text(json.dumps(content))
  assert exported.Exported(tmp_path / "E").shown is None


@pytest.mark.parametrize(
  "args, message",
  [
    ([], "give one of them"),
    (["--export=E", "--server=S"], "give one of them"),
    (["--export=E"], "FileNotFoundError: E is no export"),
    (["--server=127.0.0.1:9"], "ConnectionError: no server answers"),
  ],
)
def test_the_command_says_what_is_wrong_in_one_line(args, message, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert run.main([*args, "--suite=metaworld/mt4", f"--out={tmp_path / 'out'}"]) == 1
  err = capsys.readouterr().err
  assert message in err and len(err.splitlines()) == 1
  assert not (tmp_path / "out").exists()


def test_a_tokenizer_does_not_act(policy_export, tokenizer_workdir, tmp_path):
  exporter.export(tokenizer_workdir, tmp_path / "E")
  who = exported.Exported(tmp_path / "E")
  who.spec = dataclasses.replace(who.spec, action_dim=4)
  with pytest.raises(ValueError, match="holds a tokenizer, which does not act"):
    evaluation.Evaluation(who, "metaworld/mt4", tmp_path)
  made = evaluation.Evaluation(
    who, "metaworld/mt4", tmp_path / "out", ceiling=True, num_tokens=(8,), replans=(8,)
  )
  assert made.settings == [("expert", 8, 0), ("ceiling", 8, 8)]
