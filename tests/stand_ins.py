"""What stands in for the commands of a cluster."""


def commands(folder, **ends):
  """Stand-ins for a cluster's commands: each writes its arguments to a log and ends as told."""
  folder.mkdir()
  for name, end in ends.items():
    file = folder / name
    file.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/log\n{end}\n')
    file.chmod(0o755)
  return folder
