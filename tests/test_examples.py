"""The notebooks in `examples/` run from top to bottom. Their cells are plain Python, so no kernel is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_model import smollm2

from gbcd.evaluation.evaluation_plan import pair_up
from gbcd.models.load import load
from gbcd.prompting.tokens import encode
from gbcd.tasks import _registry

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.usefixtures("forgotten")
@pytest.mark.filterwarnings("ignore:.*no centered_grad_norm")  # few prompts, as a page has
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(_registry.names())
    content = notebook.read_text(encoding="utf-8")
    if 'smollm2-135m\\", ' in content:
        smollm2()
    monkeypatch.chdir(ROOT)
    cells = json.loads(content)["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), f"{notebook.name}:{cell['id']}", "exec"), names)
            assert capsys.readouterr().out or cell is not cells[-1]
    own, tokenizer = set(_registry.names()) - before, load("reference", "cpu").tokenizer
    assert all(pair_up(encode(_registry.draw(name, tokenizer, 4, 0), tokenizer)).refused == [] for name in own)


def test_there_is_one_for_each_way_of_use() -> None:
    assert len(NOTEBOOKS) == 6
