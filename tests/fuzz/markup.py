"""Fields of records.json that mean something to a terminal, Markdown, LaTeX, a spreadsheet or a browser.

What the report writes of them is read as each of those would read it: nothing may be there that is not there when the
same fields hold plain words.
"""

import contextlib
import csv
import io
import json
import re
import tempfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from random import Random

from dassl.report import records
from mergetune import report
from tests.fuzz.lines import relative
from tests.fuzz.oracle import Files, Target

PAYLOADS = [
    "a\n\\input{/etc/passwd}", "\\write18{touch canary}", "$\\immediate$", "50%\n\\end{document}", "a_b^c~d#e&f", "a%b",
    "\\", "{", "}", "\\\\", "=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "+1+1", "-2+3", "\t=1", "\r=1", "\n=1", '"',
    '","=1', "a|b|c", "a\n| x | y |", "|\n\n# heading", "`code`", "**bold**", "[a](javascript:x)", "<!--", "-->", "<b>",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\rb", "\x9b31m", "\u202eabc", "\u2028a", "\u0085a", "\x00", "\x7f",
    "\ud800x", "<script>alert(1)</script>", "</script><script>alert(1)</script>", '" onmouseover="alert(1)', "]]>",
    "' onclick='x", "<img src=x onerror=x>", "</table>", "&lt;b&gt;", "</td></tr>", "a" * 3000, "a\vb\fc", "",
]  # fmt: skip
FIELDS = ("trainer", "preset", "dataset", "command", "data_seen", "chosen_on", "alpha_chosen_on", "device", "split",
          "source", "backbone.name", "backbone.source", "merge.title", "merge.method", "versions.torch", "world_digest",
          "processor", "sampler")  # fmt: skip
PLAIN = "plain"
ESCAPES = [rf"\{char}" for char in "_&%#${}^~"]  # of LaTeX, beside those by name
NAMES = ("backslash", "asciitilde", "asciicircum", "bar", "less", "greater", "quotedbl")
SUM = re.compile(r"[\d. ±to+-]*")  # numbers, ranges of them, and at worst their sum
ESCAPES += [rf"\text{name}" for name in NAMES]


def runs(put: dict[str, str]) -> Files:
    """results.json of two methods on two seeds and halves; of the first method with what is put into its fields."""
    files = {}
    for trainer in ("CoOp", "KgCoOp"):
        for seed in (1, 2):
            for number, part in enumerate(("base", "new")):
                content = {
                    "format": 1, "kind": "eval", "trainer": trainer, "preset": "", "dataset": "toy_a", "split": "a",
                    "protocol": "base2new", "subset": part, "shots": 16, "seed": seed, "backbone": {"name": "tiny"},
                    "metrics": {"accuracy": 50.0 + 10 * number}, "correct": 5 + number, "total": 10, "epochs": 1,
                    "command": "train.py", "data_seen": "16 shots", "versions": {"torch": "2"},
                }  # fmt: skip
                for name, value in put.items() if trainer == "CoOp" else ():
                    *nodes, leaf = name.split(".")
                    inner = content
                    for node in nodes:
                        inner = inner.setdefault(node, {})
                    inner[leaf] = value
                files[f"runs/{trainer}{seed}{part}/results.json"] = json.dumps(content).encode()
    return files


def make(rng: Random) -> Files:
    return runs({name: rng.choice(PAYLOADS) for name in rng.sample(FIELDS, rng.choice((1, 1, 2)))})


def written(folder: Path) -> dict[str, str]:
    """What the report of a folder prints and writes: {ending: text}, the terminal's as "said"."""
    said, out = io.StringIO(), folder / "out"
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        report.report(report.parse_args([str(folder), "--out", str(out), "--latex", "--html", str(out / "page.html")]))
    texts = {"said": said.getvalue().replace(str(folder), "")}
    for path in sorted(out.rglob("*.*")):
        if path.is_file() and path.suffix != ".png":
            text = path.read_bytes().decode().replace(str(folder), "")
            texts[path.suffix[1:]] = texts.get(path.suffix[1:], "") + text
    return texts


def unclean(texts: dict[str, str]) -> list[str]:
    """One line for each thing that plain words would not have made."""
    found = []
    for ending, text in texts.items():
        plain = "\r\n" if ending == "csv" else "\n"
        odd = sorted({char for char in text if char not in plain and not char.isprintable()})
        found += [f"{ending}: control characters {odd}"] if odd else []
    for row in csv.reader(io.StringIO(texts.get("csv", ""), newline="")):
        cells = [cell for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not SUM.fullmatch(cell)]
        found += [f"csv: cells that begin with {cells}"] if cells else []
    found += [f"md: {line!r}" for line in _broken_rows(texts.get("md", ""))]
    found += [f"tex: {name}" for name in sorted(_latex(texts.get("tex", "")) - known()["tex"])]
    found += [f"html: {tag}" for tag in sorted(_html(texts.get("html", "")) - known()["html"])]
    return found


def _broken_rows(text: str) -> list[str]:
    """Rows of a Markdown table with another number of cells than its head, and lines that begin a heading within."""
    broken, width = [], 0
    for line in text.split("\n"):
        cells = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("|"):
            width = 0
        elif width and cells != width:
            broken.append(line)
        else:
            width = cells
    return broken


def _latex(text: str) -> set[str]:
    """Commands, and what is active outside of them, of a LaTeX text without its comments."""
    body = re.sub(r"(?<!\\)%.*", "", text)
    commands = set(re.findall(r"\\(?:[a-zA-Z]+|.)", body))
    depth = 0
    for char in re.sub(r"\\[{}]", "", body):
        depth += (char == "{") - (char == "}")
    return commands | ({"unbalanced braces"} if depth else set())


def _html(text: str) -> set[str]:
    """Tags with the names of their attributes."""
    tags = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.add(f"{tag} {' '.join(sorted(name for name, _ in attrs))}")

        def handle_comment(self, data):
            tags.add("comment")

    Parser().feed(text)
    return tags


@cache
def known() -> dict[str, set[str]]:
    """What the report of plain words holds: commands of LaTeX, tags of HTML."""
    found = {"tex": set(ESCAPES), "html": set()}
    for put in [{}, *({name: value} for name in FIELDS for value in (PLAIN, ""))]:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in runs(put).items():
                Path(folder, name).parent.mkdir(parents=True)
                Path(folder, name).write_bytes(content)
            texts = written(Path(folder))
        found["tex"] |= _latex(texts.get("tex", ""))
        found["html"] |= _html(texts["html"])
    return found


def read(folder: Path):
    """Report on a folder. AssertionError for what is not clean."""
    dirty = unclean(written(folder))
    assert not dirty, "; ".join(dirty[:5])


MARKUP = Target(
    "markup", make, read, (relative(records),), ("runs/",), prepare=lambda _: known(), weight=1, writes=True
)
