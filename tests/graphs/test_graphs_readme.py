"""The example of the README runs as it stands."""

import re
from pathlib import Path


def test_the_example_of_the_readme_runs(capsys):
    readme = Path(__file__).parents[2] / "packages" / "graphs" / "README.md"
    code = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)[1]
    exec(compile(code, str(readme), "exec"), {})
    assert "test accuracy" in capsys.readouterr().out
