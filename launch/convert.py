r"""Converts demonstrations of another format to an RLDS dataset, TFRecord in TFDS layout.

  python launch/convert.py --from=robomimic_hdf5 --in=lift/ph/image.hdf5 --out=runs/data/lift
  python launch/convert.py --from=libero_hdf5 --in=libero_10 --out=runs/data/libero_10
  python launch/convert.py --from=lerobot --in=svla_so101_pickplace --out=runs/data/pickplace
  python launch/convert.py --from=array_record --in=bridge/1.0.0 --out=runs/data/bridge

robomimic_hdf5 and libero_hdf5 take a file or a directory of them, lerobot the directory that holds
meta/ (v3.0 or v2.x), array_record a TFDS directory. LIBERO's images, upside down in its files, are
rotated by 180 degrees, as in its published RLDS versions.

Whatever ends a conversion, the same command continues it; a finished one is left as it is. What was
skipped or left out is printed and kept in OUT/convert_report.json. Open the dataset with
`tfds.builder_from_directory(OUT)`.
"""

import command

from absl import flags

from oat_jax.data import convert
from oat_jax.data import sources

_DEFAULT = sources.Options()
_FROM = flags.DEFINE_enum("from", None, sources.formats(), "Format to read.", required=True)
_IN = flags.DEFINE_string("in", None, "File or directory to read.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory of the dataset.", required=True)
_NAME = flags.DEFINE_string("name", "", "Name of the dataset; from the source if unset.")
_ON_ERROR = flags.DEFINE_enum(
  "on_error", "raise", ["raise", "skip"], "Stop at a bad episode, or leave it out and list it."
)
_LANGUAGE = flags.DEFINE_string(
  "language", _DEFAULT.language, "Instruction of every episode, instead of the source's."
)
_IMAGE_FORMAT = flags.DEFINE_enum(
  "image_format",
  _DEFAULT.image_format,
  ["", *sources.IMAGE_FORMATS],
  "Images as JPEG of quality 95 or as PNG; if unset, encoded ones stay and others become JPEG.",
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", _DEFAULT.tolerance, "Seconds that a video's frame may be off its timestamp."
)


def main() -> None:
  report = convert.convert(
    _FROM.value,
    _IN.value,
    _OUT.value,
    name=_NAME.value,
    on_error=_ON_ERROR.value,
    options=sources.Options(_LANGUAGE.value, _IMAGE_FORMAT.value, _TOLERANCE.value),
  )
  print(convert.describe(report))
  print(f"{_OUT.value} holds the dataset")


if __name__ == "__main__":
  command.run(main)
