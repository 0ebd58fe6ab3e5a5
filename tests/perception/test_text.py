"""The text tower computes what SigLIP's does, from its files, and says which file does not fit."""

import json

import numpy as np
import pytest
import texts
import tokenizers
import towers

from oat_jax.perception import text

# Capital letters, an unknown word, no word, as long as there are positions, longer.
TEXTS = ["Lift the mug", "push it", "", "push the mug slowly", "lift the mug slowly slowly push"]
TOKENS = [[3, 5, 6, 1, 1], [4, 2, 1, 1, 1], [1] * 5, [4, 5, 6, 7, 1], [3, 5, 6, 7, 1]]


def test_embeddings_are_those_of_the_file(tmp_path, monkeypatch, capsys):
  folder = texts.write(tmp_path / "siglip")
  got = text.embed(folder, TEXTS)
  want = texts.forward(texts.tensors(), TOKENS)
  assert got.dtype == np.float32 and want.std(0).min() > 0.05
  np.testing.assert_allclose(got, want, atol=2e-5)
  said = capsys.readouterr().out
  assert said.startswith(f"{folder}: 1 of 5 instructions are cut to its 5 tokens, the first: ")
  assert said.count("\n") == 1 and "'lift the mug slowly slowly push'" in said
  monkeypatch.setattr(text, "_TEXTS", 2)  # several batches, the last of them not full
  np.testing.assert_allclose(text.embed(folder, TEXTS), got, atol=1e-6)


def test_padding_is_what_the_tokenizers_file_says(tmp_path):
  folder = texts.write(tmp_path / "siglip")
  path = folder / "tokenizer.json"
  made = texts.tokenizer()
  made.enable_padding(pad_id=0, pad_token="<pad>", length=9)
  made.enable_truncation(2)
  made.save(str(path))
  assert text.tokenize(path, ["lift the mug", ""], 5).tolist() == [[3, 5, 6, 1, 0], [1, 0, 0, 0, 0]]


def test_sizes_that_are_left_out_are_those_of_the_base_model(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 24}}))
  config = text._config(tmp_path / "config.json")
  assert (config.width, config.layers, config.heads, config.mlp_width) == (24, 12, 12, 3072)
  (tmp_path / "config.json").write_text(json.dumps(texts.CONFIG))  # of a text model alone
  assert text._config(tmp_path / "config.json").mlp_width == towers.F


def refused(folder, error=ValueError):
  with pytest.raises(error) as caught:
    text.embed(folder, TEXTS)
  assert str(folder) in str(caught.value)
  return str(caught.value)


def test_files_that_do_not_fit_are_refused_by_name(tmp_path):
  folder, name = tmp_path / "siglip", "text_model.encoder.layers.1.layer_norm2.weight"
  without = lambda tensors: {key: x for key, x in tensors.items() if key != name}
  message = refused(texts.write(folder, change=without))
  assert f"model.safetensors lacks the tensor '{name}'; config.json beside it must be" in message
  extra = {"text_model.adapter.weight": np.zeros(3, np.float32)}
  message = refused(texts.write(folder, change=lambda tensors: tensors | extra))
  assert "holds the tensor 'text_model.adapter.weight', which has no place here" in message
  message = refused(texts.write(folder, change=lambda t: t | {name: np.zeros(17, np.float32)}))
  assert f"tensor '{name}' is [17]; config.json makes it [16]" in message
  table = "text_model.embeddings.token_embedding.weight"
  message = refused(texts.write(folder, change=lambda t: t | {table: t[table][:5]}))
  assert "tokenizer.json gives token 7; model.safetensors embeds 5 of them" in message


def test_what_is_no_text_encoder_is_refused(tmp_path):
  assert "it has no config.json" in refused(tmp_path / "nowhere", FileNotFoundError)
  folder = texts.write(tmp_path / "siglip")
  made = texts.tokenizer()
  made.post_processor = tokenizers.processors.TemplateProcessing("$A", special_tokens=[])
  made.save(str(folder / "tokenizer.json"))
  assert "tokenizer.json puts no end token behind a text" in refused(folder)
  (folder / "tokenizer.json").write_text("{}")
  assert "tokenizer.json is no tokenizer" in refused(folder)
  (folder / "config.json").write_text(json.dumps(texts.CONFIG | {"num_attention_heads": 3}))
  assert "text tower's sizes: width 16 is no multiple of heads 3" in refused(folder)
  (folder / "config.json").write_text("[]")
  assert "config.json does not say" in refused(folder)
  (folder / "model.safetensors").unlink()
  assert "it has no model.safetensors" in refused(folder, FileNotFoundError)
