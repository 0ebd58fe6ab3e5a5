"""The other side of `launch/benchmark.py peer`, run by the peer's own interpreter, which has torch.

  PYTHON oat_jax/bench/peer_torch.py CHECKOUT SETTINGS

The first line out says what was built; then every line `KIND DROPOUT STEPS` that comes in, of a
tokenizer or a policy, is answered by the seconds that so many training steps took. Lines out are
JSON; one with `error` is the last. The file imports nothing of oat_jax, and nothing of oat_jax
imports it.
"""
# pyright: reportMissingImports=false

import copy
import json
import sys
import time


def main() -> None:
  checkout, settings = sys.argv[1], json.loads(sys.argv[2])
  sys.path[0] = checkout  # this file's folder has names that hide those of packages
  lines, sys.stdout = sys.stdout, sys.stderr  # what the peer prints is no answer
  answer = lambda **values: print(json.dumps(values), file=lines, flush=True)
  try:
    import torch

    torch.set_num_threads(settings["threads"])
    steps, parameters = {}, {}
    for kind, build in (("tokenizer", tokenizer), ("policy", policy)):
      for dropout in settings["dropouts"]:
        model = build(settings, dropout)
        steps[kind, dropout] = training_step(settings, *model)
        parameters[kind] = sum(p.numel() for p in model[0].parameters() if p.requires_grad)
  except Exception as error:
    answer(error=f"{type(error).__name__}: {error}")
    return
  answer(version=torch.__version__, threads=torch.get_num_threads(), parameters=parameters)
  for line in sys.stdin:
    kind, dropout, count = line.split()
    step = steps[kind, float(dropout)]
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(int(count)):
      step()
    answer(cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall)


def tokenizer(settings, dropout):
  """Returns (the peer's tokenizer, its optimiser, a batch)."""
  from oat.model.common.normalizer import LinearNormalizer
  from oat.tokenizer.oat.decoder.single_pass_decoder import SinglePassDecoder
  from oat.tokenizer.oat.encoder.register_encoder import RegisterEncoder
  from oat.tokenizer.oat.quantizer.fsq import FSQ
  from oat.tokenizer.oat.tokenizer import OATTok
  import torch

  torch.manual_seed(0)
  B, C, A, N = (settings[name] for name in ("batch", "horizon", "action_dim", "num_tokens"))
  sizes = {
    "sample_dim": A,
    "sample_horizon": C,
    "emb_dim": settings["width"],
    "head_dim": settings["head_width"],
    "pdropout": dropout,
    "latent_dim": len(settings["levels"]),
  }
  model = OATTok(
    RegisterEncoder(**sizes, depth=settings["encoder_layers"], num_registers=N),
    SinglePassDecoder(
      **sizes,
      depth=settings["decoder_layers"],
      token_dropout_mode="pow2",
      use_causal_decoder=True,
      latent_horizon=N,
    ),
    FSQ(settings["levels"]),
  )
  batch = {"action": 2 * torch.rand(B, C, A) - 1}
  normalizer = LinearNormalizer()
  normalizer.fit(batch)
  model.set_normalizer(normalizer)
  return model, model.get_optimizer(settings["learning_rate"], 0.0, settings["betas"]), batch


def policy(settings, dropout):
  """Returns (the peer's policy from states, its optimiser, a batch): it tokenizes every batch."""
  from oat.model.common.normalizer import LinearNormalizer
  from oat.perception.fused_obs_encoder import FusedObservationEncoder
  from oat.policy.oatpolicy import OATPolicy
  import torch

  inner, _, batch = tokenizer(settings, dropout)
  B, T, S = (settings[name] for name in ("batch", "observation_steps", "state_dim"))
  shapes = {
    "obs": {"state": {"shape": [S], "type": "state"}},
    "action": {"shape": [settings["action_dim"]]},
  }
  # Without a projection its report of parameters divides by their number, 0.
  encoder = "oat.perception.state_encoder.ProjectionStateEncoder"
  states = {"_target_": encoder, "out_dim": settings["width"]}
  model = OATPolicy(
    shapes,
    FusedObservationEncoder(shapes, state_encoder=states),
    inner,
    n_action_steps=settings["horizon"] // 2,
    n_obs_steps=T,
    embed_dim=settings["width"],
    n_layers=settings["policy_layers"],
    n_heads=settings["width"] // settings["head_width"],
    dropout=dropout,
  )
  batch = batch | {"obs": {"state": 2 * torch.rand(B, T, S) - 1}}
  normalizer = LinearNormalizer()
  normalizer.fit(batch["obs"])
  model.set_normalizer(normalizer)
  rate = settings["learning_rate"]
  return model, model.get_optimizer(rate, rate / 5, 0.0, settings["betas"]), batch


def training_step(settings, model, optimizer, batch):
  """Returns () -> loss: what the peer's workspace does with a batch."""
  from oat.model.diffusion.ema_model import EMAModel
  import torch

  average = EMAModel(copy.deepcopy(model), power=settings["ema_power"])
  model.train()

  def step():
    loss = model(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.step(model)
    return loss.item()

  return step


if __name__ == "__main__":
  main()
