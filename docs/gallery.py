"""Execute the notebooks in full and keep their pictures: `python docs/gallery.py [name ...]`.

Writes the outputs into the notebooks and, for the README, the picture of the cell tagged
`gallery`, else the last one, to docs/gallery/.
"""

import base64
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parent


def pictures(cell: dict) -> list[str]:
    """PNG images among the outputs of a cell, in base64."""
    return [output["data"]["image/png"] for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})]


def render(path: Path) -> float:
    """Run one notebook, store its outputs and its picture; returns the seconds it took."""
    notebook = nbformat.read(path, 4)
    begin = time.perf_counter()
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    seconds = time.perf_counter() - begin
    found, chosen = [], []
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            found += pictures(cell)
            if "gallery" in cell.metadata.get("tags", []):
                chosen += pictures(cell)
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)
    (DOCS / "gallery").mkdir(exist_ok=True)
    for picture in (chosen or found)[-1:]:
        (DOCS / "gallery" / f"{path.stem}.png").write_bytes(base64.b64decode(picture))
    return seconds


if __name__ == "__main__":
    everything = sorted((DOCS.parent / "notebooks").glob("*.ipynb"))
    for path in everything:
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            print(f"{path.stem}: {render(path):.0f} s", flush=True)
