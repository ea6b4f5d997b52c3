"""FORMAT.md: its worked example is a file that loads, and its tensor is the one on the page."""
from __future__ import annotations

import re
from pathlib import Path

import nnc


def test_worked_example(tmp_path):
    page = (Path(nnc.__file__).parent / "FORMAT.md").read_text()
    example = page[page.index("## 17. Worked example"):]
    block = example[example.index("    58 00 00 00"):example.index("The directory, inflated")]
    data = b""
    for line in block.splitlines():
        text = line.strip().replace("␠", " ")
        if text.startswith("{"):
            data += (text + " " * (-len(text) % 8)).encode()
        elif text:
            data += bytes.fromhex("".join(re.match(r"(?:[0-9a-f]{2}\s+)*[0-9a-f]{2}(?=\s|$)", text).group(0).split()))
    (tmp_path / "example.safetensors").write_bytes(data)
    rows = re.findall(r"^ +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+)$", example, re.M)
    assert nnc.load(tmp_path / "example.safetensors")["w"].tolist() == [[float(v) for v in row] for row in rows]
