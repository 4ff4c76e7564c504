"""The Python examples of the documents run as they stand and print what they say."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "code"),
    [("README.md", examples("README.md")[0]), ("docs/extend.md", "\n".join(examples("docs/extend.md")))],
    ids=["the transforms of the README", "the page on extending"],
)
def test_an_example_runs_when_pasted(page: str, code: str) -> None:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for said in re.findall(r"# prints (.*)", code):
        assert said in done.stdout
