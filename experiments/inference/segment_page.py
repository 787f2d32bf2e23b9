"""The page to listen to detections and to mark them as right or wrong: one file, without a server."""

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from experiments.core.escaping import escape_cell, escape_html
from experiments.core.files import write_text
from experiments.core.words import count_noun


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """A detection on the page.

    Attributes:
        row: its row of the table: clip, file, start, end, label, score, band and mark.
        picture: its spectrogram, uint8 `[H, W, 3]`.
        sound: its clip as MP3.
        inside: where in the clip it begins and ends, 0 to 1.
    """

    row: Sequence[str]
    picture: np.ndarray
    sound: bytes
    inside: tuple[float, float]


def write_page(path: Path, header: Sequence[str], cards: Sequence[Card], page_id: str) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        header: of the table, which the page offers with the marks in its last column, as marks.csv.
        cards: the detections, class by class.
        page_id: the browser keeps marks under it.
    """
    sections: dict[str, list[str]] = {}
    for number, card in enumerate(cards):
        sections.setdefault(card.row[4], []).append(_render_card(number, card))
    parts = [
        f'<section data-label="{escape_html(label)}"><h2>{escape_html(label)} <small>'
        f"{count_noun(len(rows), 'clip')}</small></h2><div class=cards>{''.join(rows)}</div></section>"
        for label, rows in sections.items()
    ]
    rows = [[str(escape_cell(cell)) for cell in card.row] for card in cards]
    data = json.dumps({"id": page_id, "header": list(header), "rows": rows})
    names = [escape_html(label) for label in sections]
    # Without a value, a browser would take the text with its spaces joined.
    options = "".join(f'<option value="{name}">{name}</option>' for name in names)
    page = _PAGE.substitute(
        sections="\n".join(parts),
        options=options,
        # The text of a script ends at the first `</`.
        data=data.replace("<", "\\u003c"),
        total=len(cards),
    )
    write_text(path, page)


def _render_card(number: int, card: Card) -> str:
    """Returns the HTML of a detection."""
    _, file, start, end, label, score, band, _ = card.row
    file_object = io.BytesIO()
    picture = Image.fromarray(card.picture)
    picture.quantize(64).save(file_object, "PNG", optimize=True)
    source = base64.b64encode(file_object.getvalue()).decode()
    sound = base64.b64encode(card.sound).decode()
    left, right = (100 * share for share in card.inside)
    name = escape_html(Path(file).name)
    shown = f"{float(score):.3f}" if score else "no score"
    return (
        f'<article tabindex=0 data-number="{number}" data-band="{escape_html(band)}">'
        f'<div class=picture><img loading=lazy src="data:image/png;base64,{source}" width="{picture.width}" '
        f'height="{picture.height}" alt="spectrogram of {escape_html(label)}">'
        f'<span class=where style="left:{left:.2f}%;width:{right - left:.2f}%"></span></div>'
        f'<audio controls preload=none src="data:audio/mpeg;base64,{sound}"></audio>'
        f'<p><b>{shown}</b> <span title="{escape_html(file)}">{name}</span> {start}-{end} s</p>'
        "<p class=marks><button data-mark=right>right</button><button data-mark=wrong>wrong</button></p>"
        "</article>"
    )


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Detections to listen to</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 0; color: #222; background: #fafafa; }
header { position: sticky; top: 0; z-index: 2; padding: 8px 16px; background: #fff; }
header { border-bottom: 1px solid #ccc; }
header h1 { font-size: 18px; display: inline; margin-right: 16px; }
header button { font-weight: 600; }
main { padding: 0 16px 48px; }
h2 small { font-weight: 400; color: #666; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
article { background: #fff; border: 2px solid #ddd; border-radius: 6px; padding: 8px; max-width: 100%; }
article:focus { outline: 3px solid #4477aa; }
article[data-mark=right] { border-color: #228833; }
article[data-mark=wrong] { border-color: #cc3311; }
.picture { position: relative; line-height: 0; overflow: hidden; }
.picture img { max-width: 100%; }
.where { position: absolute; top: 0; bottom: 0; border: solid #fff; border-width: 0 2px; }
.where { box-sizing: border-box; }
audio { width: 100%; height: 32px; margin-top: 6px; }
article p { margin: 4px 0 0; max-width: 40em; overflow-wrap: anywhere; }
.marks button { min-width: 6em; margin-right: 8px; }
[data-mark=right] [data-mark=right] { background: #228833; color: #fff; }
[data-mark=wrong] [data-mark=wrong] { background: #cc3311; color: #fff; }
[hidden] { display: none; }
</style>
</head>
<body>
<header>
<h1>Detections to listen to</h1>
<label>Class <select id="label"><option value="">all</option>$options</select></label>
<label><input type="checkbox" id="open"> only unmarked</label>
<span id="count" role="status">0 of $total marked</span>
<button id="save">Download marks.csv</button>
<div>Is the class in the detection, between the white lines? What is beside them is context. Keys: space
plays, r is right, w is wrong (both go to the next clip), u takes the mark away, j and k go to the next clip
and back.</div>
</header>
<main>
$sections
</main>
<script id="data" type="application/json">$data</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const key = "dyn-segments-" + data.id;
const last = data.header.length - 1;
const articles = [...document.querySelectorAll("article")];
let saved = true;
try {
  const kept = JSON.parse(localStorage.getItem(key) || "{}");
  for (const [number, mark] of Object.entries(kept)) if (data.rows[number]) data.rows[number][last] = mark;
} catch (error) { /* A browser may keep nothing for files. */ }

function show() {
  const label = document.getElementById("label").value;
  const open = document.getElementById("open").checked;
  for (const article of articles) {
    const row = data.rows[article.dataset.number];
    if (row[last]) article.dataset.mark = row[last]; else delete article.dataset.mark;
    article.hidden = open && row[last] !== "" && article !== document.activeElement;
  }
  for (const section of document.querySelectorAll("section"))
    section.hidden = label !== "" && section.dataset.label !== label;
  const marked = data.rows.filter(row => row[last] !== "").length;
  document.getElementById("count").textContent = marked + " of " + data.rows.length + " marked";
}

function mark(article, value) {
  data.rows[article.dataset.number][last] = value;
  saved = false;
  const marks = {};
  data.rows.forEach((row, number) => { if (row[last]) marks[number] = row[last]; });
  try { localStorage.setItem(key, JSON.stringify(marks)); } catch (error) { /* as above */ }
  show();
}

function makeCsv() {
  const quote = cell => /[",\\r\\n]/.test(cell) ? '"' + cell.replaceAll('"', '""') + '"' : cell;
  return [data.header, ...data.rows].map(row => row.map(quote).join(",") + "\\r\\n").join("");
}

document.querySelector("main").addEventListener("click", event => {
  const button = event.target.closest("button[data-mark]");
  if (!button) return;
  const article = button.closest("article");
  mark(article, article.dataset.mark === button.dataset.mark ? "" : button.dataset.mark);
});
function go(article, step) {
  const visible = articles.filter(one => one === article || one.offsetParent !== null);
  const next = visible[visible.indexOf(article) + step];
  if (next) { next.focus(); next.scrollIntoView({block: "center"}); }
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("header")) return;
  const focused = event.target.closest("article");
  const article = focused || articles.find(one => one.offsetParent !== null);
  if (!article) return;
  if (event.key === " ") {
    if (focused && event.target !== focused) return;  // A button's or the player's own.
    const audio = article.querySelector("audio");
    if (audio.paused) audio.play(); else audio.pause();
    article.focus();
  }
  else if (event.key === "r" || event.key === "w") {
    mark(article, event.key === "r" ? "right" : "wrong");
    go(article, 1);
  }
  else if (event.key === "u") mark(article, "");
  else if (event.key === "j") go(article, focused ? 1 : 0);
  else if (event.key === "k") go(article, -1);
  else return;
  event.preventDefault();
});
// One clip at a time.
document.addEventListener("play", event => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);
document.getElementById("label").addEventListener("change", show);
document.getElementById("open").addEventListener("change", show);
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\\ufeff", makeCsv()], {type: "text/csv"}));
  link.download = "marks.csv";
  link.click();
  saved = true;
});
window.addEventListener("beforeunload", event => { if (!saved) event.preventDefault(); });
show();
</script>
</body>
</html>
""")
