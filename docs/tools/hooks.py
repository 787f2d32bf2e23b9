"""Makes the pages of the site that are not Markdown files in `docs/`, without writing anything twice.

* Home, contributing, changelog and results are the files that git hosts show, `MOVED`.
* The reference has a page for each public room of `dyn`, made from its docstrings.
* Notebooks become pages; their outputs are those that they were saved with.

Links that lead out of `docs/` are redirected: to these pages, or from a file of `dyn` to the reference.
"""

import ast
import base64
import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.dyn")
ROOT = Path(__file__).parents[2]
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/results/README.md": "result_files.md",
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the empty sections of the navigation."""
    sections = {
        "Layers": ["layers/README.md", *list_sources("layers", "md")],
        "Notebooks": [name.replace(".ipynb", ".md") for name in list_sources("notebooks", "ipynb")],
        "Reference": [f"reference/{room}.md" for room in list_rooms()],
    }
    for entry in config.nav:
        for title, pages in sections.items():
            if entry.get(title) == []:
                entry[title] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here, and the figures beside the results."""
    for source, page in MOVED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if page == "index.md":
            text = f"---\nhide: [navigation]\n---\n\n{text}"
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "experiments" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for room in list_rooms():
        text = f"---\ntitle: dyn.{room}\n---\n\n::: dyn.{room}\n"
        files.append(File.generated(config, f"reference/{room}.md", content=text))
    for name in list_sources("notebooks", "ipynb"):
        add_notebook(files, config, name)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirects the links of a page that lead out of `docs/`."""
    uri = page.file.src_uri
    source = {page: path for path, page in MOVED.items()}.get(uri, f"docs/{uri}")

    def redirect(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not target or ":" in target or not (ROOT / path).exists():
            return match[0]
        there = find_page(path, text)
        if there is None:  # a file of the source code, which the site does not have
            return text
        there, _, name = there.partition("#")
        anchor = f"#{name}" if name else anchor
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor})"

    return LINK.sub(redirect, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Warns of public names that the reference lacks."""
    folder, _, name = page.file.src_uri.removesuffix(".md").partition("/")
    if folder != "reference":
        return
    for missing in list_public_names(name):
        if f'id="dyn.{name}.{missing}"' not in html:
            LOG.warning("reference: dyn.%s.%s is missing", name, missing)


def find_page(path: str, text: str) -> str | None:
    """Returns the place on the site of a file of the repository, which a link calls `text`."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/").replace(".ipynb", ".md")
    if path.startswith("experiments/results/") and path.endswith(".png"):
        return path.removeprefix("experiments/")
    room = re.match(r"dyn/(\w+)(?:\.py|/)", path)
    if room and room[1] in list_rooms():
        name = f".{text.strip('`')}" if text.startswith("`") else ""
        return f"reference/{room[1]}.md#dyn.{room[1]}{name}"
    return None


def list_rooms() -> list[str]:
    """Lists the public modules of `dyn`, the layers first."""
    rooms = [
        path.parent.name if path.stem == "__init__" else path.stem
        for path in (*ROOT.glob("dyn/*/__init__.py"), *ROOT.glob("dyn/*.py"))
        if path.parent.name != "dyn" or path.stem != "__init__"
    ]
    return sorted(rooms, key=lambda room: (room != "layers", room))


def list_public_names(room: str) -> list[str]:
    """Returns the names that a module of `dyn` exports, without importing it."""
    path = ROOT / "dyn" / room / "__init__.py"
    path = path if path.exists() else ROOT / "dyn" / f"{room}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def list_sources(folder: str, kind: str) -> list[str]:
    """Lists the files of a folder of `docs/`, in the order in which its README links to them."""
    readme = ROOT / "docs" / folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    paths = [path for path in (ROOT / "docs" / folder).glob(f"*.{kind}") if path != readme]
    paths.sort(key=lambda path: (text.find(f"({path.name})") % (len(text) + 1), path.name))
    return [f"{folder}/{path.name}" for path in paths]


def add_notebook(files: Files, config: MkDocsConfig, name: str) -> None:
    """Adds the page of a notebook, and its pictures."""
    notebook = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    stem, parts = name.removesuffix(".ipynb"), []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            picture = output.get("data", {}).get("image/png")
            if picture:
                file = f"{stem}_{len(parts)}.png"
                content = base64.b64decode("".join(picture))
                files.append(File.generated(config, file, content=content))
                parts.append(f"![Output of the cell above]({posixpath.basename(file)})")
            elif text := read_output(output):
                parts.append(f"```text\n{text}\n```")
    files.append(File.generated(config, f"{stem}.md", content="\n\n".join(parts) + "\n"))


def read_output(output: dict[str, Any]) -> str:
    """Returns the text of a cell's output."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(text).rstrip()
