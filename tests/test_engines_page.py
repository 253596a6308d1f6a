"""The page of plans and engines: what it makes of the rows of its benchmark."""

import json

from docs import engines


def row(plan, engine, outcome, **fields):
    return {"model": "encoder", "plan": plan, "engine": engine, "outcome": outcome, **fields}


ROWS = [
    row("query heads", "onnx", "runs", largest=2.34e-6),
    row("portable", "onnx", "runs", largest=0.0),
    row("portable", "onnx int8", "refused", reason=f"the file {engines.TOO_FAR}: by 30 %"),
    row("portable", "vllm", "fails", reason="ValueError: `widths`"),
    row("query heads", "vllm", "fails", reason="ValueError: `widths`"),
    row("emptied blocks", "vllm", "not tried", reason="no environment"),
]


def test_cells_and_reasons(tmp_path, monkeypatch):
    path = tmp_path / "engines.json"
    path.write_text(json.dumps(ROWS))
    monkeypatch.setattr(engines, "ROWS", path)
    text = engines.engines()
    assert "| ONNX Runtime | 0 |  |  | 2e-06 |  |" in text
    assert "| ONNX Runtime, int8 | too far off |  |  |  |  |" in text
    assert "| vLLM | no |  |  | no | not tried |" in text
    # every message once
    assert "- vLLM, portable, query heads: fails. `ValueError: 'widths'`" in text
