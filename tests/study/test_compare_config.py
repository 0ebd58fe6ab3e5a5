"""What of a comparison does not fit is refused early; what is shipped fits."""

from comparison import A
from comparison import values
import pytest
import tiny

from oat_jax.study import compare


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.write_dataset(tmp_path_factory.mktemp("compare") / "data", action_dim=A)


def bad(name, **changes):
  methods = values()["methods"]
  return {"methods": methods | {name: methods[name] | changes}}


@pytest.mark.parametrize(
  ("changes", "how", "message"),
  [
    ({}, {"methods": ("oats",)}, "there is no method 'oats'; did you mean 'oat'"),
    ({}, {"methods": ("nowhere.at_all",)}, "method nowhere.at_all: .*there is no module"),
    ({}, {"stages": ("train", "mode")}, "stage is 'mode'; it must be one of"),
    ({}, {"stages": ("model",)}, "is at step 0 of 4; run the stage 'train'"),
    ({}, {"stages": ("ceiling",), "suite": "metaworld/mt5"}, "there is no suite 'metaworld/mt5'"),
    ({}, {"stages": ("report",)}, "holds no tokenizer measured"),
    (bad("vq", steps=0), {}, "config.methods.vq: config.steps is 0"),
    (bad("oat", kind="policy"), {}, "config.methods.oat.kind is 'policy'"),
    (bad("vq", model={"name": "vq", "codes": 1}), {}, "method vq: config.model.codes is 1"),
    ({"data": {"stride": 0}}, {}, "config.data.stride is 0"),
    (bad("oat", model={"name": "oat", "patch": 3}), {}, "method oat: config.model.patch 3"),
    ({"methods": {}}, {}, "config.methods is empty"),
    ({"pairs": (("oat",),)}, {}, "config.pairs holds"),
    ({"pairs": (("oat", "bin|vg"),)}, {}, "config.pairs names 'vg'; config.methods has oat, bin"),
    ({"pairs": (("oat@x", "bin"),)}, {}, "config.pairs holds 'oat@x'; .* a power of two"),
    ({"pairs": (("oat@3", "bin"),)}, {}, "config.pairs holds 'oat@3'"),
    ({"pairs": (("vq@16", "bin"),)}, {}, "'vq@16'; .* a power of two up to 8, or 8"),
    ({"pictured": ("oats",)}, {}, "config.pictured names 'oats'"),
    ({"same_tokens": {"vq": "vg"}}, {}, "config.same_tokens names 'vg'"),
    ({"windows": 0}, {}, "config.windows is 0"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
  changes, how, message, data, tmp_path
):
  with pytest.raises(ValueError, match=message):
    compare.run(values(**changes), data, tmp_path / "out", **how)
  assert not (tmp_path / "out").exists()


def test_the_shipped_config_freezes():
  for variant in ("mt4", "bridge", "mini"):
    shipped = tiny.get_config("compare.py", variant)
    runs = compare.training_runs(
      compare.config_lib.freeze(compare.Config, shipped), (), "somewhere"
    )
    assert {"oat", "oat_unordered", "quest_4", "vq", "bin_quantile", "fast_strict"} < set(runs)
    steps = {each.steps for each in runs.values()}
    assert len(steps) == 2 and min(steps) == 1  # one budget for all that are learned
