"""Run notebooks and save what they show: python tests/notebooks.py [FILE ...] (all by default; it needs the extra dev).

Outputs are saved small: figures in a palette, tables without style, and of what an output holds the richest form only.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
COLOURS, SHIFT = (
    (16, 24, 32, 48, 64, 96),
    32,
)  # of a figure: the fewest that move no pixel's red, green or blue by more of 255
RICHEST = ("image/png", "text/markdown", "text/html", "text/plain")


def execute(path: Path) -> Any:
    """A notebook with the outputs of a run."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(
        env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    )  # whatever tests draw on
    return notebook


def clean(notebook: Any) -> Any:
    """The same with outputs as they are saved."""
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        for output in cell.get("outputs", []):
            if "data" in output:
                kind = next(kind for kind in RICHEST if kind in output.data)
                output.metadata, output.data = {}, {kind: SMALL.get(kind, str)(output.data[kind])}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def figure(png: str) -> str:
    """A PNG in base64, in the smallest palette that keeps its colours."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    pixels = np.asarray(image, np.int32).reshape(-1, 3)
    packed = pixels @ (65536, 256, 1)
    for count in COLOURS:
        few = image.quantize(count, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        places = np.asarray(few).reshape(-1)
        palette = np.zeros((256, 3), np.uint8)
        for k in np.unique(places):  # the commonest colour of those that become one, so that greys stay grey
            colours, counts = np.unique(packed[places == k], return_counts=True)
            palette[k] = list(int(colours[counts.argmax()]).to_bytes(3, "big"))
        if np.abs(palette[places] - pixels).max() <= SHIFT:
            break
    few.putpalette(palette[: places.max() + 1].tobytes())
    small = io.BytesIO()
    few.save(small, "PNG", optimize=True)
    with contextlib.suppress(ImportError):  # an eighth smaller where zopfli is installed
        from zopfli.png import optimize

        small = io.BytesIO(optimize(small.getvalue()))
    return base64.b64encode(small.getvalue()).decode()


def table(html: str) -> str:
    """A table without pandas' style sheet and indentation."""
    html = re.sub(r"<style scoped>.*?</style>\s*", "", html, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", html).replace('<tr style="text-align: right;">', "<tr>").replace(' border="1"', "")


SMALL = {"image/png": figure, "text/html": table}


def main() -> None:
    """Run and save the notebooks named."""
    import nbformat

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "reference"), os.environ.get("PYTHONPATH", "")])
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        nbformat.write(clean(execute(path)), path)
        print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
